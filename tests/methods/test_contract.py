"""What every merge method promises, whoever wrote it: the methods are the files of the folder."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import momacli.methods
from momacli.methods._random_mask import Draws

RESERVED = {"weights", "base", "draws", "statistic", "name"}
METHODS = sorted(
    path.stem
    for path in Path(momacli.methods.__file__).parent.glob("*.py")
    if not path.stem.startswith("_")
)
MODULES = [importlib.import_module(f"momacli.methods.{stem}") for stem in METHODS]
SHAPES = [(), (1,), (0,), (3, 0), (7,), (1, 1), (4, 6), (6, 4), (3, 2, 2, 2)]
TYPICAL = [(7,), (6, 4), (4, 6), (3, 2, 2, 2)]


def stem_of(module: ModuleType) -> str:
    return module.__name__.rsplit(".", 1)[1]


def function_of(module: ModuleType) -> Any:
    return getattr(module, stem_of(module))


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(function).parameters.items())[1:])


def options_of(function: Any) -> dict[str, inspect.Parameter]:
    return {key: value for key, value in parameters_of(function).items() if key not in RESERVED}


def expert_count(module: ModuleType) -> int:
    return min(3, getattr(module, "MAX_EXPERTS", 3))


def random_taus(T: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(T, *shape, generator=torch.Generator().manual_seed(1))


def is_unordered(module: ModuleType) -> bool:
    return expert_count(module) > 1 and not getattr(module, "ORDERED", False)


def takes(module: ModuleType, name: str) -> bool:
    return name in parameters_of(function_of(module))


def every_method(where: Callable[[ModuleType], bool] = lambda _: True) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("module", [*filter(where, MODULES)], ids=stem_of)


def arguments(module: ModuleType, taus: Tensor, order: Sequence[int] | None = None) -> dict:
    """What the engine would fill in; experts, if reordered, bring along what is theirs."""
    wanted = parameters_of(function_of(module))
    order = range(len(taus)) if order is None else order
    available = {
        "base": torch.randn(taus.shape[1:], generator=torch.Generator().manual_seed(2)),
        "draws": [Draws(f"expert {t}") for t in order],
        "name": "layers.0.weight",
        "task": list(order).index(0),
    }
    return {key: value for key, value in available.items() if key in wanted}


def merge(module: ModuleType, taus: Tensor, **extra: Any) -> Tensor:
    return function_of(module)(taus, **{**arguments(module, taus), **extra})


def test_there_are_methods_to_test() -> None:
    assert {"average", "task_arithmetic", "ties"} <= set(METHODS)


@every_method()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_result_is_finite_float32_of_the_tensors_shape(
    module: ModuleType, shape: tuple[int, ...]
) -> None:
    for T in {1, expert_count(module)}:
        merged = merge(module, random_taus(T, shape))

        assert merged.dtype == torch.float32
        assert merged.shape == shape
        assert merged.isfinite().all()


@every_method(lambda module: getattr(module, "PASSES_ON_NONFINITE", False))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_no_option_hides_a_value_that_is_not_finite_where_a_method_says_so(
    module: ModuleType, value: float, lam: float
) -> None:
    taus = random_taus(3, (7,))
    taus[1, 4] = value

    for weights in (None, torch.tensor([1.0, 0.0, 1.0])):
        with np.errstate(invalid="ignore"):  # as the engine does
            merged = merge(module, taus, weights=weights, lam=lam)

        assert merged.isfinite().tolist() == [True] * 4 + [False] + [True] * 2


@every_method()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_experts_that_never_moved_merge_to_zero(module: ModuleType, shape: tuple[int, ...]) -> None:
    merged = merge(module, torch.zeros(expert_count(module), *shape))

    # 1e-7 is one rounding of a base of size 1 in float32: what a rotation of it by nothing leaves
    torch.testing.assert_close(merged, torch.zeros(shape), rtol=0, atol=1e-7)


@every_method()
@pytest.mark.parametrize("shape", TYPICAL, ids=str)
def test_inputs_are_left_as_they_were(module: ModuleType, shape: tuple[int, ...]) -> None:
    taus = random_taus(expert_count(module), shape)
    filled = arguments(module, taus)
    tensors = {"taus": taus, **{key: x for key, x in filled.items() if isinstance(x, Tensor)}}
    before = {key: x.clone() for key, x in tensors.items()}

    merge(module, taus, **filled)

    assert all(torch.equal(x, before[key]) for key, x in tensors.items())


@every_method(is_unordered)
@pytest.mark.parametrize("shape", TYPICAL, ids=str)
def test_the_order_of_experts_does_not_matter(module: ModuleType, shape: tuple[int, ...]) -> None:
    taus = random_taus(expert_count(module), shape)
    order = [*range(1, len(taus)), 0]

    merged = merge(module, taus[order], **arguments(module, taus, order))

    torch.testing.assert_close(merged, merge(module, taus), rtol=1e-4, atol=1e-5)


@every_method(lambda module: is_unordered(module) and takes(module, "weights"))
def test_weights_follow_their_experts(module: ModuleType) -> None:
    taus = random_taus(expert_count(module), (6, 4))
    weights = torch.arange(1.0, len(taus) + 1)
    order = [*range(1, len(taus)), 0]

    merged = merge(module, taus[order], weights=weights[order], **arguments(module, taus, order))

    expected = merge(module, taus, weights=weights)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@every_method(lambda module: module.ELEMENTWISE)
@pytest.mark.parametrize("shape", [(1,), (53,), (8, 7)], ids=str)
def test_an_elementwise_method_may_be_fed_block_by_block(
    module: ModuleType, shape: tuple[int, ...]
) -> None:
    taus = random_taus(expert_count(module), shape)
    filled = arguments(module, taus)  # its draws go on from block to block
    base = filled.pop("base", torch.zeros(shape)).reshape(-1)
    taus_blocks, base_blocks = uneven_blocks(taus.reshape(len(taus), -1)), uneven_blocks(base)
    if hasattr(module, "first_pass"):
        filled["statistic"] = module.first_pass(lambda: taus_blocks)

    parts = [
        function_of(module)(block, **filled, **({"base": part} if takes(module, "base") else {}))
        for block, part in zip(taus_blocks, base_blocks, strict=True)
    ]

    torch.testing.assert_close(torch.cat(parts).reshape(shape), merge(module, taus))


def uneven_blocks(x: Tensor) -> list[Tensor]:
    return [part for part in x.tensor_split([1, 17, 40], dim=-1) if part.shape[-1]]


@every_method(lambda module: hasattr(module, "first_pass"))
def test_a_first_pass_has_the_defaults_of_its_method(module: ModuleType) -> None:
    known = parameters_of(function_of(module))

    for name, parameter in parameters_of(module.first_pass).items():
        assert parameter.default == known[name].default
    assert "statistic" in known


@every_method()
def test_the_signature_is_a_schema(module: ModuleType) -> None:
    assert isinstance(module.ELEMENTWISE, bool)
    for parameter in parameters_of(function_of(module)).values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty
    for option in options_of(function_of(module)).values():
        assert option.default is not inspect.Parameter.empty


@every_method()
def test_the_docstrings_name_the_source_and_every_option(module: ModuleType) -> None:
    title = (inspect.getdoc(module) or "").split("\n")[0]
    text = inspect.getdoc(function_of(module)) or ""
    described = set(re.findall(r"^(\w+): ", text, flags=re.MULTILINE))

    assert re.match(r"\S.* \(.*\b(19|20)\d\d\b.*\)", title), title
    assert set(options_of(function_of(module))) <= described
