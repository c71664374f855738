import json
import os
import stat
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from raw_files import entry, raw
from safetensors import deserialize

from momacli.checkpoint.header import MAX_HEADER_BYTES, is_pickle, read_header
from momacli.errors import CheckpointError


def field(dtype: str = '"F32"', shape: str = "[2]", offsets: str = "[0,8]") -> str:
    """One tensor called a.weight, its fields as they stand in the JSON."""
    return f'{{"a.weight":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


TWO = bytes(8)
HUGE = 1 << 62
ESCAPED = field().replace("weight", "w\\u0065ight")
DAMAGES = {
    # the file as a whole
    "empty": (b"", ["is empty"]),
    "one byte": (b"\0", ["1 bytes"]),
    "zeros only": (bytes(4096), ["header is empty"]),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437951328\n",
        ["git-lfs pointer", "git lfs pull"],
    ),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", ["web page"]),
    "text": (b"Entry not found", ["is a text"]),
    "json": (b'{"architectures": ["ViTModel"]}', ["is a text"]),
    "non-ASCII text": ("Zugriff verweigert, bitte später noch einmal".encode(), ["is a text"]),
    "text cut in a character": (("ä" * 300).encode(), ["is a text"]),
    "pickle": (b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", ["pickle"]),
    "shortest pickle": (b"\x80\x04N.", ["pickle"]),
    "zip": (b"PK\x03\x04\x00\x00\x08\x08\x00\x00" + bytes(50), ["zip archive"]),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(50), ["GGUF"]),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), ["HDF5"]),
    "npy": (b"\x93NUMPY\x01\x00v\x00" + bytes(50), ["NumPy"]),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\xff" + bytes(50), ["gzip"]),
    "noise": (b"\x91\xd5\x0f\xc3\x88\x17\xe2\x7d" * 8, ["claims"]),
    # the header's length
    "length 2^63": (struct.pack("<Q", 1 << 63) + bytes(16), ["claims 9223372036854775808 bytes"]),
    "length 2^64 - 1": (b"\xff" * 8 + bytes(16), ["claims 18446744073709551615 bytes"]),
    "length over the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(9), ["claims"]),
    "length past the end": (struct.pack("<Q", 100) + b"{}", ["claims 100 bytes", "has 10"]),
    "cut in the length": (raw({"a": entry()}, TWO)[:5], ["5 bytes"]),
    "cut in the header": (raw({"a": entry()}, TWO)[:30], ["claims", "30"]),
    # the header's text
    "not UTF-8": (raw(b'{"\xff\xfe":1}'), ["not valid JSON"]),
    "a byte order mark": (raw(b"\xef\xbb\xbf{}"), ["not a JSON object"]),
    "a space before it": (raw(" {}"), ["not a JSON object"]),
    "a list": (raw("[]"), ["not a JSON object"]),
    "cut JSON": (raw('{"a.weight":'), ["a.weight", "not valid"]),
    "JSON and more": (raw("{} {}"), ["not valid JSON"]),
    "JSON and NUL": (raw("{}\0"), ["not valid JSON"]),
    "a comma too many": (raw('{"__metadata__":{},}'), ["not valid JSON"]),
    "single quotes": (raw("{'a':1}"), ["not valid JSON"]),
    "control character in a name": (raw('{"a\n":{}}'), ["not valid JSON"]),
    "half a surrogate pair in a name": (raw(field().replace("a.", "\\ud800")), ["not valid JSON"]),
    "surrogate encoded as UTF-8": (raw(field().replace("a.", "\ud800")), ["not valid JSON"]),
    "nested a million deep": (raw('{"a.weight":' + "[" * 10**6), ["a.weight"]),
    "objects nested deep": (raw('{"a.weight":' + '{"a":' * 10**5), ["a.weight"]),
    "lists nested deep in a field": (raw(field(shape="[" * 1500 + "]" * 1500), TWO), ["a.weight"]),
    "tensor twice": (raw(f"{field()[:-1]},{field()[1:]}", TWO), ["a.weight twice"]),
    "tensor twice, once escaped": (
        raw(f"{field()[:-1]},{ESCAPED[1:]}", TWO),
        ["a.weight twice"],
    ),
    "field twice": (
        raw(field(shape='[2],"dtype":"F32"'), TWO),
        ["a.weight", "dtype twice"],
    ),
    # the metadata
    "metadata twice": (raw('{"__metadata__":{},"__metadata__":{}}'), ["__metadata__ twice"]),
    "metadata names a key twice": (raw('{"__metadata__":{"k":"","k":""}}'), ["__metadata__", "k"]),
    "metadata is null": (raw('{"__metadata__":null}'), ["__metadata__"]),
    "metadata is a list": (raw('{"__metadata__":[]}'), ["__metadata__"]),
    "metadata of numbers": (raw('{"__metadata__":{"a":1}}'), ["__metadata__"]),
    "metadata is a tensor": (raw({"__metadata__": entry()}, TWO), ["__metadata__"]),
    "metadata is a tensor among others": (
        raw({"__metadata__": entry(), "a": entry(offsets=[8, 16])}, TWO * 2),
        ["__metadata__"],
    ),
    "half a surrogate pair in it": (raw('{"__metadata__":{"a":"\\udc00"}}'), ["__metadata__"]),
    # a tensor's fields
    "tensor is null": (raw('{"a.weight":null}'), ["a.weight", "not valid"]),
    "tensor is a list": (raw('{"a.weight":["F32",[2],[0,8]]}', TWO), ["a.weight"]),
    "tensor without fields": (raw('{"a.weight":{}}'), ["a.weight", "found nothing"]),
    "field missing": (
        raw('{"a.weight":{"dtype":"F32","shape":[2]}}', TWO),
        ["a.weight", "expected dtype, shape and data_offsets", "found dtype, shape"],
    ),
    "field too many": (raw({"a.weight": entry(strides=[1])}, TWO), ["a.weight", "strides"]),
    "object in a field": (raw(field(dtype='{"a":{}}'), TWO), ["a.weight"]),
    "unknown dtype": (raw({"a.weight": entry("F128")}, TWO), ["a.weight", "dtype F128"]),
    "dtype in lower case": (raw({"a.weight": entry("f32")}, TWO), ["a.weight", "dtype f32"]),
    "dtype a number": (raw(field(dtype="4"), TWO), ["a.weight", "dtype"]),
    "dtype a list": (raw(field(dtype='["F32"]'), TWO), ["a.weight", "dtype"]),
    "shape a number": (raw(field(shape="2"), TWO), ["a.weight", "shape"]),
    "shape of text": (raw(field(shape='["2"]'), TWO), ["a.weight", "shape"]),
    "shape of lists": (raw(field(shape="[[2]]"), TWO), ["a.weight", "shape"]),
    "shape of true": (raw(field(shape="[true,2]"), TWO), ["a.weight", "shape"]),
    "shape of 2.0": (raw(field(shape="[2.0]"), TWO), ["a.weight", "shape"]),
    "shape of 2e0": (raw(field(shape="[2e0]"), TWO), ["a.weight", "shape"]),
    "shape of NaN": (raw(field(shape="[NaN]"), TWO), ["a.weight", "shape"]),
    "shape of Infinity": (raw(field(shape="[Infinity]"), TWO), ["a.weight", "shape"]),
    "shape of -2": (raw(field(shape="[-2]"), TWO), ["a.weight", "shape"]),
    "shape of -0": (raw(field("[0]", "[-0]", "[0,0]"), b""), ["a.weight"]),
    "shape of 02": (raw(field(shape="[02]"), TWO), ["a.weight"]),
    "shape of 2^63": (raw(field(shape=f"[{1 << 63},0]", offsets="[0,0]")), ["a.weight", "shape"]),
    "shape of 4000 digits": (raw(field(shape=f"[{'1' * 4000}]"), TWO), ["a.weight", "shape"]),
    "shape that overflows": (raw({"a.weight": entry(shape=[HUGE, HUGE])}, TWO), ["a.weight"]),
    "shape that overflows to nothing": (
        raw({"a.weight": entry(shape=[HUGE, HUGE, 0], offsets=[0, 0])}),
        ["a.weight", "shape"],
    ),
    "65 dimensions of the first": (
        raw({"a.weight": entry(shape=[1] * 64 + [2]), "b": entry(offsets=[8, 16])}, TWO * 2),
        ["a.weight", "shape"],
    ),
    "65 dimensions": (raw({"a.weight": entry(shape=[1] * 64 + [2])}, TWO), ["a.weight", "shape"]),
    "a million dimensions": (raw({"a.weight": entry(shape=[1] * 10**6)}, TWO), ["a.weight"]),
    "one offset": (raw({"a.weight": entry(offsets=[0])}, TWO), ["a.weight", "data_offsets"]),
    "three offsets": (raw({"a.weight": entry(offsets=[0, 4, 8])}, TWO), ["a.weight"]),
    "negative offset": (raw({"a.weight": entry(offsets=[-8, 0])}, TWO), ["a.weight"]),
    "offsets backwards": (raw({"a.weight": entry(offsets=[8, 0])}, TWO), ["a.weight"]),
    "offsets of 2^70": (raw({"a.weight": entry(offsets=[0, 1 << 70])}, TWO), ["a.weight"]),
    "span too long": (raw({"a.weight": entry(shape=[1])}, TWO), ["a.weight", "expected 4 bytes"]),
    "span too short": (raw({"a.weight": entry(shape=[3])}, TWO), ["a.weight", "found 8"]),
    "span of the first too long": (
        raw({"a.weight": entry(shape=[1]), "b": entry(offsets=[8, 16])}, TWO * 2),
        ["a.weight", "expected 4 bytes"],
    ),
    "unknown dtype of the first": (
        raw({"a.weight": entry("F128"), "b": entry(offsets=[8, 16])}, TWO * 2),
        ["a.weight", "dtype F128"],
    ),
    "span for another dtype": (raw({"a.weight": entry("F16")}, TWO), ["a.weight", "F16[2]"]),
    "half a byte": (raw({"a.weight": entry("F4", [3], [0, 1])}, b"\0"), ["a.weight", "1.5 bytes"]),
    # the data
    "cut in the data": (raw({"a.weight": entry()}, TWO[:5]), ["a.weight", "cut off"]),
    "no data": (raw({"a.weight": entry()}), ["a.weight", "cut off"]),
    "data too long": (raw({"a.weight": entry()}, TWO + b"\0"), ["1 bytes follow"]),
    "data of no tensor": (raw({}, TWO), ["8 bytes follow"]),
    "hole at the start": (
        raw({"a.weight": entry(offsets=[8, 16])}, TWO * 2),
        ["a.weight", "hole"],
    ),
    "hole": (
        raw({"a": entry(), "b.weight": entry(offsets=[12, 20])}, bytes(20)),
        ["b.weight", "hole"],
    ),
    "overlap": (
        raw({"a": entry(), "b.weight": entry(offsets=[4, 12])}, bytes(12)),
        ["b.weight", "overlaps"],
    ),
    "same place": (raw({"a": entry(), "b.weight": entry()}, TWO), ["b.weight", "overlaps"]),
    "empty tensor inside another": (
        raw({"a": entry(), "b.weight": entry(shape=[0], offsets=[4, 4])}, TWO),
        ["b.weight", "overlaps"],
    ),
    "past the end": (
        raw({"a.weight": entry(shape=[HUGE // 4], offsets=[0, HUGE])}, TWO),
        ["a.weight", "cut off"],
    ),
}


@pytest.mark.parametrize(("content", "phrases"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_by_a_message_that_names_file_and_tensor(
    content: bytes, phrases: list[str], tmp_path: Path
):
    path = tmp_path / "sst2.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointError) as caught:
        read_header(path)

    assert str(path) in caught.value.message
    for phrase in phrases:
        assert phrase in str(caught.value)
    assert len(str(caught.value)) < 500
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (raw("{}"), []),
        (raw("{}  \n\t"), []),
        (raw('{"__metadata__":{}}'), []),
        (raw({"": entry()}, TWO), [""]),
        (raw({"\0": entry()}, TWO), ["\0"]),
        (raw({"ü\u202e💥": entry()}, TWO), ["ü\u202e💥"]),
        (raw(json.dumps({"💥": entry()}, ensure_ascii=True), TWO), ["💥"]),
        (raw({"a": entry(shape=[], offsets=[0, 4])}, TWO[:4]), ["a"]),
        (raw({"a": entry(shape=[0, 5], offsets=[0, 0])}), ["a"]),
        (raw({"a": entry(shape=[1] * 63 + [2])}, TWO), ["a"]),
        (raw({"a": entry("F4", [2], [0, 1])}, b"\0"), ["a"]),
        (raw({"a": entry("F6_E2M3", [4], [0, 3])}, b"\0\0\0"), ["a"]),
        (raw({"b": entry(offsets=[8, 16]), "a": entry()}, TWO * 2), ["a", "b"]),
        (raw(json.dumps({"a": entry()}, indent=8), TWO), ["a"]),
        (raw(json.dumps({"a": entry()}, sort_keys=True), TWO), ["a"]),
    ],
)
def test_unusual_but_sound_files_are_read_as_the_safetensors_library_reads_them(
    content: bytes, names: list[str], tmp_path: Path
):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)

    header = read_header(path)

    assert list(header.entries) == names
    assert sorted(names) == sorted(name for name, _ in deserialize(content))


def test_tensors_written_plainly_and_otherwise_are_read_alike(tmp_path: Path):
    """What stands in the header as programs write it is taken by a way of its own."""
    table = {
        f"t{i}": entry(shape=[1, i], offsets=[i * (i - 1) * 2, i * (i + 1) * 2]) for i in range(9)
    }
    plain = json.dumps(table, separators=(",", ":"))
    texts = [plain, json.dumps(table, sort_keys=True, indent=2), plain.replace("t", "\\u0074")]
    found = []
    for text in texts:
        path = tmp_path / "a.safetensors"
        path.write_bytes(raw(text, bytes(144)))
        entries = read_header(path).entries.values()
        found.append([(e.name, e.dtype, e.shape, e.nbytes) for e in entries])

    assert len(found[0]) == 9
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 15392, 15904, 0x0A3C])
def test_a_header_whose_length_begins_like_another_format_is_still_a_header(
    length: int, tmp_path: Path
):
    """640 is 80 02 in little-endian bytes, as a pickle begins; 15392 is " <", as a page does."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(json.dumps({"a": entry()}).ljust(length), TWO))

    assert list(read_header(path).entries) == ["a"]
    assert not is_pickle(path.read_bytes()[:512])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_recognised_by_content_whatever_it_is_called(
    legacy: bool, tmp_path: Path
):
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=not legacy)

    with pytest.raises(CheckpointError, match="pickle"):
        read_header(path)
    assert zipfile.is_zipfile(path) is not legacy


def test_the_content_of_a_text_is_not_shown(tmp_path: Path):
    """A recipe from a stranger may name any file as an input, and messages end up in logs."""
    path = tmp_path / "credentials"
    path.write_text("aws_secret_access_key = hunter2")

    with pytest.raises(CheckpointError) as caught:
        read_header(path)

    assert "aws" not in str(caught.value)


def test_what_a_header_claims_costs_neither_memory_nor_time(tmp_path: Path):
    path = tmp_path / "liar.safetensors"
    path.write_bytes(raw({"a": entry(shape=[1 << 58], offsets=[0, 1 << 60])}, TWO))
    tracemalloc.start()
    started = time.monotonic()

    with pytest.raises(CheckpointError):
        read_header(path)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("filler", ["[],", "{},", "1,", '"",', '{"a":['], ids=str)
def test_a_long_hostile_header_is_refused_at_its_first_oddity(filler: str, tmp_path: Path):
    text = '{"a.weight":[' + filler * (4_000_000 // len(filler))
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(raw(text))
    tracemalloc.start()

    with pytest.raises(CheckpointError, match=r"a\.weight"):
        read_header(path)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(text)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkdir, "a folder"), (os.mkfifo, "a pipe"), (None, "a device")],
    ids=["folder", "fifo", "device"],
)
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(
    make: object, kind: str, tmp_path: Path
):
    path = Path("/dev/zero") if make is None else tmp_path / "model.safetensors"
    if callable(make):
        make(path)

    with pytest.raises(CheckpointError, match=f"{path.name} is {kind}"):
        read_header(path)


def test_a_device_is_not_even_opened(monkeypatch: pytest.MonkeyPatch):
    """Opening a watchdog or a tape sets it going."""
    opened = []
    monkeypatch.setattr(os, "open", lambda path, *_: opened.append(path))

    with pytest.raises(CheckpointError, match="is a device"):
        read_header(Path("/dev/null"))
    assert opened == []
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
