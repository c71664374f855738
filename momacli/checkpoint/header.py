"""The header of a safetensors file, read as strictly as the format is written.

A file is 8 bytes of little-endian header length, that many bytes of JSON, then the data:
    {"__metadata__": {str: str}, name: {"dtype": str, "shape": [int], "data_offsets": [a, b]}}
Every promise of the format is checked here, before any data is read, and memory is only taken
for what the file really holds: https://github.com/huggingface/safetensors#format
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple, NoReturn

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.scanner import NameTwiceError, Scanner
from momacli.checkpoint.source import Source
from momacli.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_DIMENSIONS = 64
"""What torch can hold."""

DTYPE_BITS: Mapping[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element, by the format's name for the type."""

FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})

MERGEABLE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"}) | FP8_DTYPES
"""Types that task vectors can be formed of."""

_S, _N = r"[ \t\n\r]*", "(?:0|[1-9][0-9]{0,17})"  # space; a number that is below 2^63
_FIELD = (
    rf'"(?:dtype"{_S}:{_S}"(?P<dtype>[A-Z0-9_]+)"'
    rf'|shape"{_S}:{_S}\[{_S}(?P<shape>(?:{_N}{_S}(?:,{_S}{_N}{_S}){{0,63}})?)\]'
    rf'|data_offsets"{_S}:{_S}\[{_S}(?P<start>{_N}){_S},{_S}(?P<stop>{_N}){_S}\])'
)
_PLAIN = re.compile(
    rf'"(?!__metadata__")(?P<name>[^"\\\x00-\x1f]*)"{_S}:{_S}'
    rf'\{{{_S}(?:{_FIELD}{_S}(?:,{_S}(?=")|(?=\}}))){{3}}\}}{_S},{_S}(?=")'
    "(?(dtype)|(?!))(?(shape)|(?!))(?(start)|(?!))"  # each of the three once
)
"""A member of the header as programs write it: a tensor, and the comma after it."""

_FORMATS = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive"),
)
"""First bytes of what else weights come in."""


class TensorEntry(NamedTuple):
    """Where one tensor lies: its type, shape, and byte range within the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # offset of the first byte from the start of the file
    stop: int  # offset after the last byte

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.stop - self.start

    def __str__(self) -> str:
        """Type and shape, as messages show them: F32[768, 3072]."""
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors in the order of their data, and its metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(path: Path) -> Header:
    """Read and check the header of one safetensors file.

    Raises CheckpointError, naming the file, for anything that is not a whole, sound file:
    truncated, overlapping, padded, mistyped, or another kind of file altogether.
    """
    with Source(path) as source:
        return parse_header(source)


def parse_header(source: Source) -> Header:
    """Like `read_header`, of an open file."""
    path, size = source.path, source.size
    prefix = source.read(512, 0)
    length = int.from_bytes(prefix[:8], "little")
    if not _may_be_header(prefix):
        _refuse_other_formats(path, prefix)
    if size < 8:
        _damaged(path, f"it has {size} bytes, too few for a header")
    if length > MAX_HEADER_BYTES:
        _damaged(path, f"its header claims {length} bytes, more than the format allows")
    if length == 0:
        _damaged(path, "its header is empty")
    if 8 + length > size:
        _damaged(path, f"its header claims {length} bytes, the file has {size}")
    entries, metadata = _parse(path, source.read(length, 8))
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    _check_coverage(path, entries, 8 + length, size)
    return Header({entry.name: entry for entry in entries}, metadata, 8 + length, size)


def is_pickle(prefix: bytes) -> bool:
    """Whether these first bytes are of a bare pickle or of a zip archive, as PyTorch writes it."""
    if _may_be_header(prefix):
        return False  # a header of 640 bytes begins like a pickle
    bare = prefix[:1] == b"\x80" and 2 <= int.from_bytes(prefix[1:2], "little") <= 5
    return bare or prefix[:4] == b"PK\x03\x04"


def _may_be_header(prefix: bytes) -> bool:
    return prefix[8:9] == b"{" and int.from_bytes(prefix[:8], "little") <= MAX_HEADER_BYTES


def _refuse_other_formats(path: Path, prefix: bytes) -> None:
    name = shown_path(path)
    if not prefix:
        raise CheckpointError(f"{name} is empty", hint="download or copy it again")
    if is_pickle(prefix):
        raise CheckpointError(
            f"{name} is a pickle or zip archive, which can run code when it is loaded",
            hint="moma convert FILE -o NAME.safetensors reads its tensors and runs nothing",
        )
    if prefix.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name} is a git-lfs pointer, not the weights", hint="run: git lfs pull"
        )
    if prefix.lstrip().startswith(b"<"):
        raise CheckpointError(f"{name} is a web page, not weights", hint="download it again")
    for first, what in _FORMATS:
        if prefix.startswith(first):
            raise CheckpointError(f"{name} is {what}, expected safetensors")
    text = prefix.decode("utf-8", "ignore")
    is_whole = len(text.encode()) > len(prefix) - 4  # but for a character cut at the end
    if is_whole and "".join(text.split()).isprintable():
        # what it says is not shown: a path in a stranger's recipe may lead to a secret
        raise CheckpointError(
            f"{name} is a text, not weights", hint="give a .safetensors file or a model folder"
        )


def _parse(path: Path, raw: bytes) -> tuple[list[TensorEntry], dict[str, str]]:
    """Read the tensors and the metadata out of the header's JSON."""
    if raw[:1] != b"{":
        _damaged(path, "its header is not a JSON object")
    data_start = 8 + len(raw)
    entries, metadata = [], {}
    shapes: dict[str, tuple[int, ...]] = {}  # by their text: most are there many times
    try:
        scanner = Scanner(raw.decode("utf-8"))
        del raw
        for name, plain in scanner.members(_PLAIN):
            if plain is not None:
                dtype, sizes, start, stop = plain.group("dtype", "shape", "start", "stop")
                shape = shapes.get(sizes)
                if shape is None:
                    shape = shapes[sizes] = tuple(map(int, sizes.split(","))) if sizes else ()
                fields = dtype, shape, int(start), int(stop)
            elif name == "__metadata__":
                metadata = _metadata(path, scanner)
                continue
            else:
                fields = _fields(path, name, scanner)
            entries.append(_entry(path, name, fields, data_start))
        scanner.end()
    except NameTwiceError as error:
        _damaged(path, f"its header names {shown(error.name)} twice")
    except ValueError:
        _damaged(path, "its header is not valid JSON")
    return entries, metadata


def _metadata(path: Path, scanner: Scanner) -> dict[str, str]:
    try:
        return {name: scanner.string() for name, _ in scanner.members()}
    except NameTwiceError as error:
        _damaged(path, f"its __metadata__ names {shown(error.name)} twice")
    except ValueError:
        _damaged(path, "its __metadata__ is not a table of strings")


_Fields = tuple[str, tuple[int, ...], int, int]
"""What a header says of one tensor: its type, shape, and the two offsets."""


def _fields(path: Path, name: str, scanner: Scanner) -> _Fields:
    what = f"tensor {shown(name)}"
    try:
        fields = scanner.small_object()
    except NameTwiceError as error:
        _damaged(path, f"{what} has {shown(error.name)} twice")
    except (ValueError, RecursionError):
        _damaged(path, f"what it says of {what} is not valid")
    if fields.keys() != {"dtype", "shape", "data_offsets"}:
        expected, found = "dtype, shape and data_offsets", ", ".join(fields) or "nothing"
        _damaged(path, f"{what}: expected {expected}, found {shown(found)}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str):
        _damaged(path, f"{what} has unknown dtype {shown(str(dtype))}")
    if not _naturals(shape):
        _damaged(path, f"{what} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2:
        _damaged(path, f"{what} has impossible data_offsets")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _entry(path: Path, name: str, fields: _Fields, data_start: int) -> TensorEntry:
    dtype, shape, start, stop = fields
    if dtype not in DTYPE_BITS:
        _damaged(path, f"tensor {shown(name)} has unknown dtype {shown(dtype)}")
    if len(shape) > MAX_DIMENSIONS or prod(filter(None, shape)) >= 1 << 63:
        _damaged(path, f"tensor {shown(name)} has an impossible shape")
    if start > stop:
        _damaged(path, f"tensor {shown(name)} has impossible data_offsets")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (stop - start):
        expected, found = f"{bits / 8:.15g} bytes for {dtype}{list(shape)}", stop - start
        _damaged(path, f"tensor {shown(name)}: expected {expected}, found {found}")
    return TensorEntry(name, dtype, shape, data_start + start, data_start + stop)


def _naturals(value: object) -> bool:
    """Whether this is a list of integers in range; true and false are none."""
    return isinstance(value, list) and set(map(type, value)) <= {int} and min(value, default=0) >= 0


def _check_coverage(path: Path, entries: Sequence[TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for entry in entries:
        if entry.start < position:
            _damaged(path, f"tensor {shown(entry.name)} overlaps the one before it")
        if entry.start > position:
            _damaged(path, f"there is a hole before tensor {shown(entry.name)}")
        position = entry.stop
    if position > size:
        cut = next(entry for entry in entries if entry.stop > size)
        _damaged(
            path,
            f"it is cut off in tensor {shown(cut.name)}: expected {position} bytes, found {size}",
        )
    if position < size:
        _damaged(path, f"{size - position} bytes follow after the last tensor")


def _damaged(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{shown_path(path)} is not a sound safetensors file: {why}",
        hint="download or write it again",
    )
