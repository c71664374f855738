"""Every form that torch.save and pickle.dump write is read as torch reads it, and nothing runs."""

import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from pickled import FORMS, Canary, as_plain, as_row, as_zip, module_for_now
from safetensors.torch import load_file
from torch import nn

from momacli.convert import convert
from momacli.errors import CheckpointError, MomaError
from momacli.pickles.instructions import INSTRUCTIONS
from momacli.pickles.machine import Budget, Machine
from momacli.pickles.rebuild import Rebuild
from momacli.pickles.values import Instance
from momacli.pickles.window import Window, window_of
from momacli.progress import Notice

TYPES = (
    "float64", "float32", "float16", "bfloat16", "complex64", "int64", "int32", "int16", "int8",
    "uint8", "bool", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip


def converted(content: bytes, folder: Path, **options: object) -> dict[str, torch.Tensor]:
    """What comes out of a file."""
    (folder / "in.pt").write_bytes(content)
    convert([folder / "in.pt"], output=folder / "out.safetensors", force=True, **options)
    return load_file(folder / "out.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert found[key].shape == value.shape
        width = value.dtype.itemsize
        same = found[key].contiguous().reshape(-1).view(torch.uint8).reshape(-1, width)
        wanted = value.detach().contiguous().reshape(-1).view(torch.uint8).reshape(-1, width)
        assert torch.equal(same, wanted), key


@pytest.mark.parametrize("form", FORMS)
def test_every_type_and_shape_comes_out_bit_by_bit(form, tmp_path):
    torch.manual_seed(0)
    names = [name for name in TYPES if form == "zip" or not name.startswith(("uint1", "uint3"))]
    names = [name for name in names if form == "zip" or name not in ("uint64",)]
    tensors = {name: (torch.rand(3, 2) * 3).to(getattr(torch, name)) for name in names}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "long": torch.rand(9999)}

    assert_same(converted(FORMS[form](tensors), tmp_path), tensors)


@pytest.mark.parametrize("form", FORMS)
def test_views_become_tensors_of_their_own(form, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": whole.T,
        "rows": whole[1:3],
        "columns": whole[:, 2:4],
        "whole": whole,
        "repeated": torch.ones(1, 3).expand(4, 3),
        "one": torch.rand(5, 1).T,
    }

    assert_same(converted(FORMS[form](tensors), tmp_path), tensors)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_module_needs_no_class_of_its_own(form, tmp_path):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.GELU(), Block())])
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.norm = nn.BatchNorm1d(3)
            self.register_parameter("none", None)
            self.name = "an encoder"

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2, 2))

    with module_for_now("gone.models", Encoder=Encoder, Block=Block):
        encoder = Encoder()
        content = FORMS[form](encoder)
    assert "gone.models" not in sys.modules

    assert_same(converted(content, tmp_path), dict(encoder.state_dict()))
    report = convert([tmp_path / "in.pt"], output=tmp_path / "out.safetensors")
    assert report.files[0].kind == "gone.models.Encoder"
    assert report.files[0].kept == {"name": "an encoder"}


def test_a_big_byte_string_of_python_2_protocol_and_names_of_old_classes_are_read(tmp_path):
    with module_for_now("old", Parameter=type("Parameter", (nn.Parameter,), {})) as old:
        content = pickle.dumps({"w": old.Parameter(torch.rand(300, 300))}, protocol=2)

    assert converted(content, tmp_path)["w"].shape == (300, 300)


@pytest.mark.parametrize("form", FORMS)
def test_code_in_a_file_does_not_run(form, tmp_path):
    canary = tmp_path / "it-ran"
    content = FORMS[form]({"weight": torch.ones(2), "extra": Canary(canary)})

    assert_same(converted(content, tmp_path), {"weight": torch.ones(2)})
    assert not canary.exists()


PROGRAMS = {
    "a call": b"\x80\x02cos\nsystem\nX\x10\x00\x00\x00touch   canary  \x85R.",
    "an object": b"\x80\x02(cos\nsystem\nX\x10\x00\x00\x00touch   canary  o.",
    "an instance": b"\x80\x02(X\x10\x00\x00\x00touch   canary  ios\nsystem\n.",
    "a new object": b"\x80\x02cos\nsystem\nX\x10\x00\x00\x00touch   canary  \x85\x81.",
    "a state": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",
    "attributes": b"\x80\x02cbuiltins\ngetattr\ncos\nX\x06\x00\x00\x00system\x86R)R.",
    "an evaluation": b"\x80\x02c__builtin__\neval\nX\x0c\x00\x00\x00open('c','w')\x85R.",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_made_by_hand_do_nothing(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.pt").write_bytes(PROGRAMS[program])

    with pytest.raises(MomaError):
        convert(["in.pt"], output="out.safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


WIDER = b"".join(b"(%stq%c" % (b"h%c" % i * 200, i + 1) for i in range(8))
DOUBLED = b"q%c](h%ch%ce"


def test_every_instruction_of_pickles_is_known():
    codes = {one.code.encode("latin-1") for one in pickletools.opcodes}

    assert INSTRUCTIONS.keys() | {b"."} == codes


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_python_reads(protocol):
    values = [
        None, True, -1, 255, 65_535, 1 << 31, -(1 << 70), 1 << 2100, 2.5, "text\n\ud800", "", b"",
        b"bytes" * 2000, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,)), [1, [2]], {"a": {1: 2}},
        bytearray(b"more"), "x" * 300,
    ]  # fmt: skip
    content = pickle.dumps([values, values], protocol=protocol)
    machine = Machine(window_of(content), Budget(), rebuild=Rebuild(None), persistent=repr)
    found, again = machine.load()

    assert found is again
    for expected, value in zip(values, found, strict=True):
        if isinstance(value, Window):
            value = value.read(value.size, 0)
        assert isinstance(value, Instance) or value == expected
    assert machine.position == len(content)


def test_sets_are_read():
    for value in (set(), {1, "a"}, frozenset({(1, 2)})):
        content = pickle.dumps(value, protocol=4)
        machine = Machine(window_of(content), Budget(), rebuild=Rebuild(None), persistent=repr)

        assert set(machine.load()) == value


BOMBS = {
    "a claimed length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "a claimed text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "a claimed number": b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b".",
    "a negative length": b"\x80\x04T" + struct.pack("<i", -5) + b".",
    "a far memo": b"\x80\x04]r" + struct.pack("<I", (1 << 32) - 1) + b".",
    "nested tuples as a key": b"\x80\x04})" + b"\x85" * 30_000 + b"K\x01s.",
    "tuples of the same tuple many times, in levels, as a key": b"\x80\x04}K\x01q\x00"
    + b"".join(b"(" + b"h%c" % i * 500 + b"tq%c" % (i + 1) for i in range(7))
    + b"Ns.",
    "a key that takes forever to hash": b"\x80\x04}K\x01q\x00" + WIDER + b"K\x02s.",
    "nested lists": b"\x80\x04" + b"]" * 9000 + b"a" * 8999 + b".",
    "doubled lists": b"\x80\x04]"
    + b"".join(b"q%c](h%ch%ce" % ((i,) * 3) for i in range(60))
    + b".",
    "endless digits": b"\x80\x02I" + b"9" * 60_000 + b"\n.",
    "an endless line": b"\x80\x02c" + b"x" * 200_000,
    "nothing on the stack": b"\x80\x02.",
    "a group without a beginning": b"\x80\x02t.",
    "an extension": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "a storage outside": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "frames without end": b"\x80\x04" + (b"\x95" + b"\xff" * 8) * 1000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_would_take_memory_or_crash_is_refused(bomb, tmp_path):
    (tmp_path / "in.pt").write_bytes(BOMBS[bomb])
    tracemalloc.start()

    with pytest.raises(MomaError, match=r"in\.pt"):
        convert([tmp_path / "in.pt"], output=tmp_path / "out.safetensors")

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20


def test_a_few_bytes_do_not_become_many(tmp_path):
    tensors = {f"t{i}": torch.ones(1).expand(1 << 20, 1 << 10) for i in range(3)}

    with pytest.raises(CheckpointError, match="same few elements"):
        converted(as_zip(tensors), tmp_path)


def rezipped(content: bytes, folder: Path, method: int = 0, **changed: bytes) -> bytes:
    """A zip archive written again by Python, with some members changed."""
    (folder / "a.zip").write_bytes(content)
    with zipfile.ZipFile(folder / "a.zip") as old, zipfile.ZipFile(folder / "b.zip", "w") as new:
        for item in old.infolist():
            data = changed.get(Path(item.filename).name.replace(".", "_"), old.read(item))
            if data != b"(gone)":
                new.writestr(item.filename, data, compress_type=method)
    return (folder / "b.zip").read_bytes()


def test_archives_that_torch_did_not_write_are_refused_by_what_is_wrong_with_them(tmp_path):
    content = as_zip({"w": torch.ones(1000)})

    assert converted(rezipped(content, tmp_path), tmp_path)["w"].sum() == 1000
    for words, odd in {
        "compressed": rezipped(content, tmp_path, zipfile.ZIP_DEFLATED),
        "big-endian": rezipped(content, tmp_path, byteorder=b"big"),
        "expected 4000 bytes, found 2": rezipped(content, tmp_path, **{"0": b"xx"}),
        "no data.pkl": rezipped(content, tmp_path, data_pkl=b"(gone)"),
        "storage 0 is missing": rezipped(content, tmp_path, **{"0": b"(gone)"}),
        "cut off": content[:-100],
        "checksum": content.replace(torch.ones(1000).numpy().tobytes(), bytes(4000)),
    }.items():
        with pytest.raises(CheckpointError, match=words):
            converted(odd, tmp_path)


def test_a_checksum_that_was_not_computed_is_not_missed(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        content = as_zip({"w": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)

    assert converted(content, tmp_path)["w"].tolist() == [1, 1, 1]


def test_a_script_archive_is_told_from_a_saved_model(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is old, and so are the files
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")

    with pytest.raises(CheckpointError, match="TorchScript"):
        convert([tmp_path / "script.pt"], output=tmp_path / "out.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_tensors_that_the_format_cannot_hold_are_listed(form, tmp_path):
    tensors = {"a": torch.ones(2), "wide": torch.ones(2, dtype=torch.complex128)}
    tensors["sparse"] = torch.eye(3).to_sparse()

    with pytest.raises(CheckpointError) as caught:
        converted(FORMS[form](tensors), tmp_path)

    assert [line.split(":")[0] for line in caught.value.details] == ["wide", "sparse"]


@pytest.mark.parametrize("form", ["zip", "row", "plain"])
def test_cut_or_flipped_files_are_errors_that_name_the_file(form, tmp_path):
    """Whatever is done to the bytes, only the tool's own error comes out, or tensors."""
    draw = random.Random(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    content = FORMS[form]({"model": model, "epoch": 3, "names": ["a", (1, 2.5, None)]})
    refused = 0
    for number in range(200):
        changed = bytearray(content)
        if number % 4 == 0:
            changed = changed[: draw.randrange(len(content))]
        for _ in range(draw.choice([1, 1, 2, 8])):
            if changed:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        (tmp_path / "in.pt").write_bytes(changed)
        try:
            convert([tmp_path / "in.pt"], output=tmp_path / "out.safetensors", force=True)
        except MomaError as error:
            refused += "in.pt" in error.message

    assert refused > 75
    assert {path.name for path in tmp_path.iterdir()} <= {"in.pt", "out.safetensors"}


def test_the_same_file_gives_the_same_bytes(tmp_path):
    tensors = {f"t{i}": torch.rand(7, i) for i in range(30)}
    (tmp_path / "in.pt").write_bytes(as_row(tensors))
    for name in ("one", "two"):
        convert([tmp_path / "in.pt"], output=tmp_path / f"{name}.safetensors")

    one = (tmp_path / "one.safetensors").read_bytes()
    assert one == (tmp_path / "two.safetensors").read_bytes()


def test_a_tensor_of_several_blocks_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("momacli.pickles.copying._BLOCK", 64)
    shared = torch.rand(100)
    tensors = {"a": shared[3:50], "b": shared[40:90], "c": shared, "d": shared[::3]}
    for content in (as_zip(tensors), as_plain(tensors)):
        assert_same(converted(content, tmp_path), tensors)


def test_not_even_torch_is_imported(tmp_path):
    (tmp_path / "in.pt").write_bytes(as_plain(nn.Linear(2, 2)))
    script = (
        "import sys; from momacli.cli.main import run\n"
        "assert run(['convert', 'in.pt', '-o', 'out.safetensors']) == 0\n"
        "assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)


def test_of_thousands_of_ties_and_other_entries_twenty_are_named_and_the_rest_counted(tmp_path):
    shared = torch.ones(2)
    ties = {f"tie {number}": shared for number in range(3000)}
    others = {f"entry {number}": object for number in range(3000)}
    torch.save({**ties, **others}, tmp_path / "many.pt")
    notes = []

    convert([tmp_path / "many.pt"], output=tmp_path / "o.safetensors", listener=notes.append)

    texts = [event.text for event in notes if isinstance(event, Notice)]
    assert len(texts) == 22
    assert texts[20].endswith("and 2979 more tensors that go by another name")
    assert "entry 19: " in texts[21]
    assert texts[21].endswith(" and 2980 more")
