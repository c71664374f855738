"""Tensors too large to hold of all models at once: measured and merged in parts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from momacli.checkpoint import blocks
from momacli.checkpoint.spans import Span
from momacli.merge import merge
from momacli.methods import _by_size, _streaming
from momacli.methods._catalog import load_method, method_names

ROWS, COLUMNS = 310, 100
PARTS = {"entries": [8192, 8192, 8192, 6424], "rows": [8100, 8100, 8100, 6700]}

IN_PARTS: list[tuple[str, dict[str, Any], str]] = [
    ("breadcrumbs", {}, "entries"),
    ("breadcrumbs", {"options": {"per": "row", "beta": 0.3}, "weights": [1, 2, -1]}, "rows"),
    ("della", {"weights": [1, 2, -1]}, "rows"),
    ("sce", {}, "entries"),
    ("sce", {"options": {"density": 1.0}}, "entries"),
    ("arcee-fusion", {"experts": 1}, "rows"),
    ("model-stock", {"options": {"per": "row"}}, "rows"),
    ("nuslerp", {"options": {"per": "row"}, "experts": 2}, "rows"),
    ("ties", {"scope": "tensor"}, "entries"),
    ("ties", {"scope": "tensor", "options": {"density": 0.7}, "weights": [1, 2, -1]}, "entries"),
    ("consensus", {"scope": "tensor", "options": {"of": "ties"}}, "entries"),
    ("pcb", {"scope": "tensor"}, "entries"),
]

OF_MATRICES: list[tuple[str, dict[str, Any]]] = [
    ("iso-c", {}),
    ("iso-cts", {"options": {"lam": 0.7}}),
    ("iso-cts", {"options": {"common_fraction": 0.3}}),
    ("tsv-m", {"options": {"lam": 0.7}}),
    ("tsv-m", {"experts": 1}),
    ("directional", {"options": {"lam": 0.7}}),
    ("wudi", {"options": {"steps": 20}}),
    ("orthomerge", {}),
    ("orthomerge", {"options": {"variant": "global", "lam_residual": 0.5}}),
]

HELD: list[tuple[str, dict[str, Any]]] = [
    ("della", {"options": {"rescale": "l1"}}),
    ("della", {"options": {"per": "tensor"}}),
    ("nuslerp", {"options": {"per": "column"}, "experts": 2}),
    ("breadcrumbs", {"allow_nonfinite": True}),
    ("breadcrumbs", {"dtype_of_inputs": torch.float64}),
    ("orthomerge", {"options": {"residual": "ties"}}),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries of the large tensor were merged at a time."""
    found, added = list[int](), _streaming.added

    def noting(plan: Any, span: Span, *given: Any) -> Any:
        if span.spec.name == "large":
            found.append(span.length)
        return added(plan, span, *given)

    monkeypatch.setattr(_streaming, "added", noting)
    return found


def merged(
    monkeypatch: pytest.MonkeyPatch, method: str, given: dict[str, Any], largest: int
) -> bytes:
    """The output, and how many of its values are told to be changed."""
    more = dict(given)
    experts, dtype = more.pop("experts", 3), more.pop("dtype_of_inputs", torch.float32)
    turned = more.pop("turned", False)
    names = ["base", *(f"t{number}" for number in range(experts))]
    base = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        change = 0.01 * torch.randn(ROWS, COLUMNS, generator=generator)
        change[torch.rand(ROWS, COLUMNS, generator=generator) < 0.1] = 0
        tensors = {
            "large": (base + change).mT.contiguous() if turned else base + change,
            "long": torch.randn(9000, generator=generator),
            "small": torch.randn(7, 5, generator=generator),
        }
        values = {key: value.to(dtype) for key, value in tensors.items()}
        save_file(values, f"{name}.safetensors")
    monkeypatch.setattr(_by_size, "LARGEST", largest)
    monkeypatch.setattr(blocks, "_CACHED", 1)
    inputs = [f"{name}.safetensors" for name in names]
    report = merge(inputs, method=method, output="out.safetensors", force=True, **more)
    return Path("out.safetensors").read_bytes() + str(report.changed_share).encode()


@pytest.mark.parametrize(("method", "given", "cut"), IN_PARTS)
def test_a_large_tensor_merged_in_parts_has_the_bytes_of_the_whole(
    method, given, cut, lengths, monkeypatch
):
    outputs = [merged(monkeypatch, method, given, largest) for largest in (0, 1 << 60)]

    assert lengths == [*PARTS[cut], ROWS * COLUMNS]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(("method", "given"), OF_MATRICES)
def test_a_tall_matrix_merged_in_rows_is_the_one_of_the_whole(method, given, lengths, monkeypatch):
    found = []
    for largest in (0, 1 << 60):
        merged(monkeypatch, method, given, largest)
        found.append(load_file("out.safetensors"))

    assert lengths == [*PARTS["rows"], ROWS * COLUMNS]
    for key in ("large", "long", "small"):
        torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-6, atol=1e-6)
    base, change = load_file("base.safetensors")["large"], found[1]["large"]
    assert (change - base).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["iso-c", "tsv-m"])
def test_experts_that_never_moved_are_the_base_in_parts_too(method, lengths, monkeypatch):
    save_file({"large": torch.randn(ROWS, COLUMNS)}, "base.safetensors")
    monkeypatch.setattr(_by_size, "LARGEST", 0)
    monkeypatch.setattr(blocks, "_CACHED", 1)
    for name in ("t0", "t1"):
        shutil.copy("base.safetensors", f"{name}.safetensors")
    merge(
        ["base.safetensors", "t0.safetensors", "t1.safetensors"],
        method=method,
        output="out.safetensors",
    )

    assert torch.equal(
        load_file("out.safetensors")["large"], load_file("base.safetensors")["large"]
    )
    assert lengths == PARTS["rows"]


@pytest.mark.parametrize("method", ["iso-c", "wudi"])
def test_a_wide_matrix_is_held_whole(method, lengths, monkeypatch):
    merged(monkeypatch, method, {"turned": True, "options": {}}, 0)

    assert lengths == [ROWS * COLUMNS]


@pytest.mark.parametrize(("method", "given"), HELD)
def test_what_no_part_can_tell_is_held_whole(method, given, lengths, monkeypatch):
    merged(monkeypatch, method, given, 0)

    assert lengths == [ROWS * COLUMNS]


def test_every_method_that_is_merged_in_parts_is_tested_here_or_by_its_compiled_pass():
    methods = map(load_method, method_names())
    able = {one.name for one in methods if one.in_parts is not None and one.one_pass is None}

    here = {method for method, _, _ in IN_PARTS} | {method for method, _ in OF_MATRICES}
    assert able <= here


def test_less_memory_is_expected_where_a_large_tensor_is_merged_in_parts(monkeypatch):
    def expected(largest: int) -> int:
        merged(monkeypatch, "breadcrumbs", {}, largest)
        inputs = ["base.safetensors", "t0.safetensors", "t1.safetensors"]
        monkeypatch.setattr(_by_size, "LARGEST", largest)
        plan = merge(inputs, method="breadcrumbs", dry_run=True, output="planned.safetensors")
        return plan.memory

    assert expected(0) < expected(1 << 60)
