"""Merges that are sums: in compiled loops where models are large, to the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.methods import _added, _streaming

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


def merged(inputs: list[str], method: str, monkeypatch: pytest.MonkeyPatch, *, loop: bool) -> bytes:
    """The bytes of the output, and of how many values it says that they changed."""
    monkeypatch.setattr(_streaming, "_WORTH_COMPILING", 0 if loop else 1 << 60)
    options = {"weights": list(range(8))} if method == "task-arithmetic" else {}
    report = merge(inputs, method=method, output="out.safetensors", force=True, **options)
    return Path("out.safetensors").read_bytes() + str(report.changed_share).encode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["average", "task-arithmetic"])
def test_a_compiled_sum_writes_the_bytes_of_numpys(method, dtype, monkeypatch):
    inputs = write(dtype)
    looped = list[int]()
    added = _added.added_to_base
    monkeypatch.setattr(
        _added, "added_to_base", lambda *given: looped.append(given[0].size) or added(*given)
    )

    outputs = [merged(inputs, method, monkeypatch, loop=loop) for loop in (True, False)]

    assert looped == [2000]  # the first tensor is looked at closely, a single number by NumPy
    assert outputs[0] == outputs[1]


def test_a_broken_expert_is_named_by_a_compiled_sum_too(monkeypatch):
    def damage(name: str, weight: Tensor) -> None:
        if name == "t3":
            weight[-1, -1] = torch.nan

    with pytest.raises(ConflictError, match="weight holds NaN") as error:
        merged(write(torch.float32, damage), "average", monkeypatch, loop=True)

    assert [Path(line).name for line in error.value.details] == ["t3.safetensors"]


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
