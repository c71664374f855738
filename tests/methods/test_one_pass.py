"""Merges added to the base in one compiled pass: the bits of one step after another."""

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from momacli.methods import average, dare, task_arithmetic
from momacli.methods._random_mask import Draws

MODULES = [average, dare, task_arithmetic]

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


@pytest.mark.parametrize("module", MODULES)
def test_one_pass_takes_what_the_method_takes_with_its_defaults(module):
    own, others = (
        [
            str(one)
            for one in inspect.signature(function).parameters.values()
            if one.kind is one.KEYWORD_ONLY
        ]
        for function in (function_of(module), module.one_pass)
    )

    assert sorted(own) == sorted(others)
