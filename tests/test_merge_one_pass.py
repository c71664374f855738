"""Merges in one compiled pass where models are large, to the bytes of one step after another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.checkpoint import blocks
from momacli.checkpoint.spans import Span
from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.methods import _by_size, _streaming

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
    given = {**METHODS.get(method, {}), **more}
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

    assert passes == [200, 2000]  # a single number is left to NumPy
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("method", "more", "compiled"),
    [
        *((method, {}, [200, 2000]) for method in OF_ANGLES),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("method", "inputs"),
    [(method, 8) for method in OF_ANGLES] + [("slerp", 2), ("nuslerp", 2)],
)
def test_large_tensors_are_read_twice_in_pieces_to_the_same_values(
    method, inputs, dtype, passes, monkeypatch
):
    models = write(dtype)[: 1 + inputs]
    small, large = 600 * len(models), 1 << 60
    found = list[dict[str, Tensor]]()
    for limit in (small, large):
        monkeypatch.setattr(_by_size, "LARGEST", limit)
        monkeypatch.setattr(blocks, "_CACHED", len(models) << 10)
        merged(models, method, monkeypatch, compiled=True)
        found.append(load_file("out.safetensors"))

    assert passes == [200, 1024, 976, 200, 2000]
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("model-stock", {"options": {"per": "row"}}),
        ("nuslerp", {"options": {"per": "column"}}),
        ("multislerp", {"allow_nonfinite": True}),
    ],
)
def test_what_is_decided_otherwise_is_held_whole(method, more, passes, monkeypatch):
    models = write(torch.float32)[: 3 if method == "nuslerp" else 9]
    monkeypatch.setattr(_by_size, "LARGEST", 0)
    monkeypatch.setattr(blocks, "_CACHED", len(models) << 10)

    merged(models, method, monkeypatch, compiled=True, **more)

    assert passes == ([200, 2000] if method == "multislerp" else [])


@pytest.mark.parametrize(("dtype", "lam"), [("float16", 1e7), ("float32", 3e38)])
def test_a_large_result_that_its_type_cannot_hold_is_an_error(dtype, lam, monkeypatch):
    def far(name: str, weight: Tensor) -> None:
        if name != "base":
            weight *= 30

    monkeypatch.setattr(_by_size, "LARGEST", 600 * len(NAMES))
    inputs, more = write(torch.float32, far), {"options": {"lam": lam}, "dtype": dtype}

    with pytest.raises(ConflictError, match="of the result has values beyond F"):
        merged(inputs, "multislerp", monkeypatch, compiled=True, **more)


@pytest.mark.parametrize("largest", [0, 1 << 60])
@pytest.mark.parametrize("method", METHODS)
def test_a_broken_expert_is_named_by_a_compiled_pass_too(method, largest, monkeypatch):
    monkeypatch.setattr(_by_size, "LARGEST", largest)

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
