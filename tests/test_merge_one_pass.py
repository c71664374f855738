"""Merges in one compiled pass where models are large, to the bytes of one step after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.checkpoint.spans import Span
from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.methods import _streaming

NAMES = ["base", *(f"t{number}" for number in range(8))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(dtype: torch.dtype, change: Callable[[str, Tensor], None] | None = None) -> list[str]:
    """A base and eight experts near it; one tensor is a single number."""
    base = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        weight = base + 0.01 * torch.randn(50, 40, generator=generator)
        if change:
            change(name, weight)
        scale = torch.randn((), generator=generator)
        tensors = {"first": weight[:5].to(dtype).clone(), "scale": scale.to(dtype)}
        save_file(tensors | {"weight": weight.to(dtype)}, f"{name}.safetensors")
    return [f"{name}.safetensors" for name in NAMES]


OF_ENTRIES: dict[str, dict[str, Any]] = {
    "average": {},
    "task-arithmetic": {"weights": list(range(8))},
    "dare": {"options": {"then": "ties", "drop_rate": 0.5}},
}
OF_ANGLES: dict[str, dict[str, Any]] = {
    "model-stock": {},
    "multislerp": {"weights": list(range(1, 9))},
    "karcher": {"options": {"center": "base"}},
}
METHODS = OF_ENTRIES | OF_ANGLES


def merged(
    inputs: list[str], method: str, monkeypatch: pytest.MonkeyPatch, *, compiled: bool, **more: Any
) -> bytes:
    """The bytes of the output, and of how many values it says that they changed."""
    monkeypatch.setattr(_streaming, "_WORTH_COMPILING", 0 if compiled else 1 << 60)
    given = {**METHODS[method], **more}
    report = merge(inputs, method=method, output="out.safetensors", force=True, **given)
    return Path("out.safetensors").read_bytes() + str(report.changed_share).encode()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each compiled pass took."""
    found, written = list[int](), _streaming.written

    def noting(span: Span, *given: Any) -> Any:
        found.append(span.length)
        return written(span, *given)

    monkeypatch.setattr(_streaming, "written", noting)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", OF_ENTRIES)
def test_a_compiled_pass_writes_the_bytes_of_numpys(method, dtype, passes, monkeypatch):
    inputs = write(dtype)

    outputs = [merged(inputs, method, monkeypatch, compiled=on) for on in (True, False)]

    assert passes == [2000]  # the first tensor is looked at closely, a single number by NumPy
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("method", "more", "compiled"),
    [
        *((method, {}, [2000]) for method in OF_ANGLES),
        ("model-stock", {"options": {"per": "row"}}, []),
    ],
)
def test_merges_by_angles_in_compiled_passes_are_those_of_numpy(
    method, more, compiled, passes, monkeypatch
):
    inputs, found = write(torch.float32), list[dict[str, Tensor]]()
    for on in (True, False):
        merged(inputs, method, monkeypatch, compiled=on, **more)
        found.append(load_file("out.safetensors"))

    assert passes == compiled
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_expert_is_named_by_a_compiled_pass_too(method, monkeypatch):
    def damage(name: str, weight: Tensor) -> None:
        if name == "t3":
            weight[-1, 7:] = torch.nan

    with pytest.raises(ConflictError, match="weight holds NaN") as error:
        merged(write(torch.float32, damage), method, monkeypatch, compiled=True)

    assert [Path(line).name for line in error.value.details] == ["t3.safetensors"]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_broken_single_number_is_named_too(compiled, monkeypatch):
    inputs = write(torch.float32)
    tensors = load_file("t3.safetensors")
    save_file(tensors | {"scale": torch.tensor(torch.inf)}, "t3.safetensors")

    with pytest.raises(ConflictError, match="scale holds NaN or infinity"):
        merged(inputs, "dare", monkeypatch, compiled=compiled)


@pytest.mark.parametrize("method", ["dare", "model-stock"])
def test_entries_that_are_not_finite_can_come_from_the_base_in_either_way(method, monkeypatch):
    def damage(name: str, weight: Tensor) -> None:
        if name == "t3":
            weight[30, 7:9] = torch.nan

    inputs = write(torch.float32, damage)

    outputs = [
        merged(inputs, method, monkeypatch, compiled=on, allow_nonfinite=True)
        for on in (True, False)
    ]

    assert outputs[0] == outputs[1]


def test_an_expert_that_equals_the_base_is_still_noticed(monkeypatch):
    inputs = write(torch.float32)
    Path("t3.safetensors").write_bytes(Path("base.safetensors").read_bytes())
    monkeypatch.setattr(_streaming, "_WORTH_COMPILING", 0)
    said = list[str]()

    merge(
        inputs,
        method="average",
        output="out.safetensors",
        listener=lambda event: said.append(str(getattr(event, "text", ""))),
    )

    assert [text for text in said if "t3 equals the base" in text]
