"""Merges added to the base in one compiled pass: the bits of one step after another."""

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from momacli.methods import (
    average,
    dare,
    karcher,
    model_stock,
    multislerp,
    nuslerp,
    slerp,
    task_arithmetic,
)
from momacli.methods._random_mask import Draws

OF_ENTRIES: list[ModuleType] = [average, dare, task_arithmetic]
OF_ANGLES: list[ModuleType] = [karcher, model_stock, multislerp, nuslerp, slerp]

CASES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "average": (average, {}),
    "task arithmetic": (task_arithmetic, {"lam": 1 / 3}),
    "dare": (dare, {}),
    "dare, task arithmetic": (dare, {"then": "task_arithmetic", "drop_rate": 0.3, "lam": 0.7}),
    "dare, ties": (dare, {"then": "ties", "drop_rate": 0.5}),
    "dare, ties, sum": (dare, {"then": "ties", "aggregate": "sum", "rescale": False}),
    "dare, nothing dropped": (dare, {"then": "ties", "drop_rate": 0.0}),
}
every_case = pytest.mark.parametrize(("module", "options"), CASES.values(), ids=CASES.keys())


def function_of(module: ModuleType) -> Any:
    return getattr(module, module.__name__.rpartition(".")[2])


def models(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A base and eight experts with numbers of many sizes, and zeros of both signs."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, n)) * 10.0 ** rng.integers(-6, 3, (9, n))
    values[rng.random((9, n)) < 0.3] = 0
    values[:, 0] = 0
    found = np.where(rng.random((9, n)) < 0.5, -values, values).astype(np.float32)
    found[0, 0] = -0.0
    found[1:, 1] = found[0, 1] + np.array([1, -1] * 4)  # sums of two signs, often zero
    return found[0], found[1:]


def drawn(module: ModuleType) -> dict[str, Any]:
    """Random numbers for a method that takes them, from the fifth on."""
    if module is not dare:
        return {}
    draws = [Draws(f"expert {t}") for t in range(8)]
    for one in draws:
        one.position = 5
    return {"draws": draws}


@every_case
@pytest.mark.parametrize("n", [2, 7, 1023, 5000])
@pytest.mark.parametrize("weights", [None, (-1, 2), (-2, -1)])
def test_one_pass_has_the_bits_of_one_step_after_another(module, options, n, weights):
    if weights is not None:
        weights = np.linspace(*weights, 8, dtype=np.float32)
    theta_0, thetas = models(n)
    once, one_by_one = drawn(module), drawn(module)

    merged, changed = module.one_pass(theta_0, thetas, weights=weights, **once, **options)

    tau = function_of(module)(thetas - theta_0, weights=weights, **one_by_one, **options)
    assert merged.tobytes() == (theta_0 + tau).tobytes()
    assert changed == np.count_nonzero(theta_0 + tau != theta_0)
    assert [one.position for one in once.get("draws", [])] == [
        one.position for one in one_by_one.get("draws", [])
    ]


@every_case
@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 4])
def test_what_is_not_finite_is_told_and_uses_up_no_random_numbers(module, options, broken, row):
    models_of_it = np.stack([models(3000)[0], *models(3000)[1]])
    models_of_it[row, 2001:2999:7] = broken  # in experts DARE drops most of them, perhaps all
    given = drawn(module)

    _, changed = module.one_pass(models_of_it[0], models_of_it[1:], **given, **options)

    assert changed is None
    assert all(one.position == 5 for one in given.get("draws", []))


def test_a_broken_entry_that_is_dropped_is_told_too():
    theta_0, thetas = models(3000)
    rest = dare.one_pass(theta_0, thetas, **drawn(dare), drop_rate=0.99)[0]
    dropped = np.flatnonzero(rest == theta_0)[2:]  # none of the experts keeps these
    thetas[2, dropped[-1]] = np.nan

    _, changed = dare.one_pass(theta_0, thetas, **drawn(dare), drop_rate=0.99)

    assert changed is None


ANGLES: dict[str, tuple[ModuleType, int, dict[str, Any]]] = {
    "model stock": (model_stock, 8, {}),
    "model stock of three": (model_stock, 3, {}),
    "multislerp": (multislerp, 8, {"lam": 0.7}),
    "multislerp, weights": (multislerp, 5, {"center": "zero", "weights": (1, 2, 3, 4, -5)}),
    "karcher": (karcher, 8, {}),
    "karcher, weights": (karcher, 3, {"center": "base", "weights": (1, 0, 2), "max_steps": 3}),
    "slerp": (slerp, 2, {"t": 0.3}),
    "slerp on the arc": (slerp, 2, {"dot_threshold": 1.0}),
    "nuslerp": (nuslerp, 2, {"weights": (1, 3)}),
    "nuslerp, zero": (nuslerp, 2, {"center": "zero", "lam": 1 / 3}),
}
every_angle = pytest.mark.parametrize(
    ("module", "T", "options"), ANGLES.values(), ids=ANGLES.keys()
)


def whole_numbers(n: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """A base and experts whose inner products are exact, whatever they are summed up in."""
    rng = np.random.default_rng(0)
    found = rng.integers(-9, 10, (1 + T, n)).astype(np.float32)
    found[rng.random((1 + T, n)) < 0.3] = -0.0
    return found[0], found[1:]


@every_angle
@pytest.mark.parametrize("n", [2, 7, 255, 1025])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_turn_in_one_pass_has_the_bits_of_one_step_after_another(module, T, options, n, kind):
    theta_0, thetas = (one.astype(kind) for one in whole_numbers(n, T))
    known = {key: np.array(one, np.float32) if key == "weights" else one
             for key, one in options.items()}  # fmt: skip

    merged, changed = module.one_pass(theta_0, thetas, **known)

    if "base" in inspect.signature(function_of(module)).parameters:
        known["base"] = theta_0
    tau = function_of(module)(thetas - theta_0, **known)
    assert merged.tobytes() == (theta_0 + tau).tobytes()
    assert changed == np.count_nonzero(merged != theta_0)


@every_angle
@pytest.mark.parametrize("row", [0, 2])
def test_a_turn_of_what_is_not_finite_is_none(module, T, options, row):
    models_of_it = np.stack([whole_numbers(3000, T)[0], *whole_numbers(3000, T)[1]])
    models_of_it[row, 2001] = np.nan
    known = {key: one for key, one in options.items() if key != "weights"}

    with np.errstate(all="ignore"):
        _, changed = module.one_pass(models_of_it[0], models_of_it[1:], **known)

    assert changed is None


@pytest.mark.parametrize("module", [model_stock, nuslerp])
def test_a_turn_of_each_row_is_left_to_the_method_itself(module):
    assert module.one_pass(*whole_numbers(6, 2), per="row")[1] is None


@pytest.mark.parametrize("module", [*OF_ENTRIES, *OF_ANGLES])
def test_one_pass_takes_what_the_method_takes_with_its_defaults(module):
    own, others = (
        [
            str(one)
            for one in inspect.signature(function).parameters.values()
            if one.kind is one.KEYWORD_ONLY and one.name not in ("base", "products")
        ]
        for function in (function_of(module), module.one_pass)
    )

    assert sorted(own) == sorted(others)
