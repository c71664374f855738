import json
import os
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.torch import load_file
from torch import Tensor

from momacli.checkpoint import writer as writer_module
from momacli.checkpoint.arrays import is_held, parse_dtype
from momacli.checkpoint.dtypes import dtype_code, torch_dtype
from momacli.checkpoint.header import DTYPE_BITS, read_header
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import CheckpointError, OutputError, UsageError

HELD = [code for code in DTYPE_BITS if is_held(code)]
NAMES = st.text(max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def contents(draw: st.DrawFn) -> dict[TensorSpec, Tensor]:
    """Tensors of random types, shapes and bits."""
    specs = {
        name: TensorSpec(name, draw(st.sampled_from(HELD)), draw(SHAPES))
        for name in draw(st.lists(NAMES, unique=True, max_size=6))
    }
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1 << 32)))
    return {spec: random_tensor(spec, seed) for spec in specs.values()}


def random_tensor(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    if spec.dtype == "BOOL":
        return torch.rand(spec.shape, generator=generator) < 0.5
    raw = torch.randint(0, 256, (spec.nbytes,), generator=generator, dtype=torch.uint8)
    return raw.view(torch_dtype(spec.dtype, spec.name)).reshape(spec.shape)


def bits(value: Tensor) -> list[int]:
    return value.contiguous().reshape(-1).view(torch.uint8).tolist()


@given(contents(), st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_written_in_any_order_and_parts_the_safetensors_library_reads(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[TensorSpec, Tensor],
    metadata: dict[str, str],
    data: st.DataObject,
):
    path = tmp_path_factory.getbasetemp() / "written.safetensors"

    with CheckpointWriter(path, tensors, metadata) as writer:
        for spec in data.draw(st.permutations(list(tensors))):
            flat = tensors[spec].reshape(-1)
            cut = data.draw(st.integers(0, len(flat)))
            writer.append(spec.name, flat[:cut])
            writer.append(spec.name, flat[cut:])

    loaded = load_file(path)
    assert loaded.keys() == {spec.name for spec in tensors}
    with Checkpoint.open(path) as checkpoint, safe_open(path, "pt") as opened:
        assert (opened.metadata() or {}) == checkpoint.metadata == metadata
        for spec, value in tensors.items():
            for found in (loaded[spec.name], checkpoint.read(spec.name)):
                assert (found.dtype, found.shape) == (value.dtype, value.shape)
                assert bits(found) == bits(value)


@given(
    st.lists(st.tuples(st.sampled_from([*DTYPE_BITS]), SHAPES), max_size=8),
    st.text(max_size=40),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_mixed_widths_are_aligned_and_leave_no_hole(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[tuple[str, tuple[int, ...]]],
    text: str,
):
    path = tmp_path_factory.getbasetemp() / "aligned.safetensors"
    specs = [
        TensorSpec(str(number), code, shape)
        for number, (code, shape) in enumerate(kinds)
        if prod(shape) * DTYPE_BITS[code] % 8 == 0
    ]

    with CheckpointWriter(path, specs, {"text": text}) as writer:
        for spec in specs:
            kind = torch_dtype(spec.dtype, "") if is_held(spec.dtype) else torch.uint8
            writer.append(spec.name, torch.zeros(spec.nbytes, dtype=torch.uint8).view(kind))

    header = read_header(path)
    assert header.data_start % 8 == 0
    for found in header.entries.values():
        assert found.start % max(1, DTYPE_BITS[found.dtype] // 8) == 0
    assert {name: view["dtype"] for name, view in deserialize(path.read_bytes())} == {
        spec.name: spec.dtype for spec in specs
    }


def test_the_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path):
    specs = [TensorSpec(name, "F32", (3,)) for name in "abc"]
    for path, order in (("one", "abc"), ("two", "bca")):
        with CheckpointWriter(tmp_path / path, specs, {"k": "v"}) as writer:
            for name in order:
                writer.append(name, torch.full((3,), float(ord(name))))

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_views_that_are_not_laid_out_in_order_are_written_in_order(tmp_path: Path):
    values = torch.arange(6.0).reshape(2, 3)
    complex_values = torch.tensor([1 + 2j, 3 + 4j])
    specs = [
        TensorSpec("t", "F32", (3, 2)),
        TensorSpec("conj", "C64", (2,)),
        TensorSpec("imag", "F32", (2,)),
        TensorSpec("grad", "F32", (2,)),
    ]
    with CheckpointWriter(tmp_path / "m", specs, {}) as writer:
        writer.append("t", values.T)
        writer.append("conj", complex_values.conj())
        writer.append("imag", complex_values.conj().imag)
        writer.append("grad", torch.ones(2, requires_grad=True))

    loaded = load_file(tmp_path / "m")
    assert loaded["t"].equal(values.T)
    assert loaded["conj"].tolist() == [1 - 2j, 3 - 4j]
    assert loaded["imag"].tolist() == [-2, -4]
    assert loaded["grad"].tolist() == [1, 1]


@pytest.mark.parametrize("code", ["F32", "BF16", "F8_E4M3"])
def test_appended_values_can_be_replaced_in_their_places_only(tmp_path: Path, code: str):
    kind = torch_dtype(code, "a")
    with CheckpointWriter(
        tmp_path / "m", [TensorSpec(name, code, (2, 3)) for name in "abc"], {}
    ) as writer:
        for name in "abc":
            writer.append(name, torch.full((4,), 1.0).to(kind))
        writer.replace("b", 1, torch.tensor([7.0, 8.0]).to(kind))
        for start, count in ((3, 2), (4, 1), (-1, 1)):
            with pytest.raises(ValueError, match="b: nothing was written there"):
                writer.replace("b", start, torch.zeros(count).to(kind))
        for name in "abc":
            writer.append(name, torch.full((2,), 2.0).to(kind))

    loaded = load_file(tmp_path / "m")
    found = {name: value.float().reshape(-1).tolist() for name, value in loaded.items()}
    assert found["b"] == [1, 7, 8, 1, 2, 2]
    assert found["a"] == found["c"] == [1, 1, 1, 1, 2, 2]


def test_a_large_write_is_made_of_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer_module, "_PART", 7)

    with CheckpointWriter(tmp_path / "m", [TensorSpec("a", "F32", (100,))], {}) as writer:
        writer.append("a", torch.arange(100.0))

    assert load_file(tmp_path / "m")["a"].equal(torch.arange(100.0))


def test_metadata_of_the_same_length_replaces_the_first(tmp_path: Path):
    with CheckpointWriter(tmp_path / "m", [TensorSpec("a", "U8", (1,))], {"d": "00"}) as writer:
        writer.append("a", torch.ones(1, dtype=torch.uint8))
        writer.replace_metadata({"d": "42"})
        with pytest.raises(ValueError, match="another length"):
            writer.replace_metadata({"d": "a longer text than that"})

    assert read_header(tmp_path / "m").metadata == {"d": "42"}
    assert load_file(tmp_path / "m")["a"].tolist() == [1]


def test_what_the_caller_gets_wrong_is_never_written(tmp_path: Path):
    two = TensorSpec("a", "F16", (2,))
    with CheckpointWriter(tmp_path / "m", [two], {}) as writer:
        with pytest.raises(ValueError, match=r"expected float16, found bfloat16"):
            writer.append("a", torch.zeros(2, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="more values"):
            writer.append("a", torch.zeros(3, dtype=torch.float16))
        with pytest.raises(KeyError):
            writer.append("b", torch.zeros(2, dtype=torch.float16))
        writer.append("a", torch.zeros(2, dtype=torch.float16))
        with pytest.raises(ValueError, match="more values"):
            writer.append("a", torch.zeros(1, dtype=torch.float16))

    assert load_file(tmp_path / "m")["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "specs",
    [
        [TensorSpec("a", "F32", (1,)), TensorSpec("a", "F32", (1,))],
        [TensorSpec("__metadata__", "F32", (1,))],
        [TensorSpec("a", "F4", (3,))],
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_the_file_is_made(
    specs: list[TensorSpec], tmp_path: Path
):
    with pytest.raises(ValueError):
        CheckpointWriter(tmp_path / "m", specs, {})

    assert not (tmp_path / "m").exists()


def test_a_header_that_nobody_could_read_is_refused_before_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_module, "MAX_HEADER_BYTES", 1000)

    with pytest.raises(OutputError, match="more than the format allows"):
        CheckpointWriter(tmp_path / "m", [], {"recipe": "x" * 1000})

    assert not (tmp_path / "m").exists()


def test_a_tensor_left_incomplete_is_an_error_that_names_it(tmp_path: Path):
    specs = [TensorSpec("whole", "F32", (2,)), TensorSpec("half", "F32", (2,))]

    writer = CheckpointWriter(tmp_path / "m", specs, {})
    writer.append("whole", torch.zeros(2))
    writer.append("half", torch.zeros(1))

    with pytest.raises(ValueError, match="not written in full: half"):
        writer.close()


def test_an_error_in_the_block_is_the_one_that_is_seen(tmp_path: Path):
    with (
        pytest.raises(ZeroDivisionError),
        CheckpointWriter(tmp_path / "m", [TensorSpec("a", "F32", (2,))], {}),
    ):
        _ = 1 / 0


def test_where_space_cannot_be_taken_beforehand_the_file_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    for number, allocate in enumerate((unsupported, None)):
        if allocate is None:
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        else:
            monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
        path = tmp_path / str(number)
        with CheckpointWriter(path, [TensorSpec("a", "F32", (2,))], {}) as writer:
            writer.append("a", torch.ones(2))

        assert load_file(path)["a"].tolist() == [1, 1]


def test_names_are_written_as_they_are_not_escaped(tmp_path: Path):
    with CheckpointWriter(tmp_path / "m", [TensorSpec("ü💥", "F32", (0,))], {"é": "ß"}):
        pass

    content = (tmp_path / "m").read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    assert json.loads(header).keys() == {"__metadata__", "ü💥"}
    assert "ü💥".encode() in header


# types


@pytest.mark.parametrize("code", HELD)
def test_each_type_code_and_its_torch_type_stand_for_each_other(code: str):
    kind = torch_dtype(code, "a")

    assert dtype_code(kind) == code
    assert kind.itemsize * 8 == DTYPE_BITS[code]


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_a_type_of_less_than_a_byte_is_an_error_that_names_the_tensor(code: str):
    with pytest.raises(CheckpointError, match=f"tensor a has dtype {code}"):
        torch_dtype(code, "tensor a")


def test_a_torch_type_without_a_code_is_an_error_that_names_it():
    with pytest.raises(OutputError, match="complex128"):
        dtype_code(torch.complex128)


@pytest.mark.parametrize(
    ("text", "code"),
    [("float32", "F32"), ("FP32", "F32"), ("bf16", "BF16"), ("half", "F16"), ("float64", "F64")],
)
def test_types_go_by_their_usual_names(text: str, code: str):
    assert parse_dtype(text) == code


def test_an_unknown_type_is_an_error_that_lists_the_known():
    with pytest.raises(UsageError, match=r"unknown dtype int8\\x1b\nhint: .*bfloat16"):
        parse_dtype("int8\x1b")
