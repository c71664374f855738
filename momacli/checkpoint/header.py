"""The header of a safetensors file, read as strictly as the format is written.

A file is 8 bytes of little-endian header length, that many bytes of JSON, then the data:
    {"__metadata__": {str: str}, name: {"dtype": str, "shape": [int], "data_offsets": [a, b]}}
Every promise of the format is checked here, before any data is read, and memory is only taken
for what the file really holds: https://github.com/huggingface/safetensors#format
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from momacli.checkpoint.escaping import shown, shown_path
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

MERGEABLE_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that task vectors can be formed of."""

_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_TWICE: Any = object()  # key under which a JSON object remembers a name it was given twice

_FORMATS = (
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive"),
)
"""First bytes of what else weights come in."""


@dataclass(frozen=True)
class TensorEntry:
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
    if size < 8 or length > MAX_HEADER_BYTES:
        _refuse_other_formats(path, prefix)
    if size < 8:
        _damaged(path, f"it has {size} bytes, too few for a header")
    if length > MAX_HEADER_BYTES:
        _damaged(path, f"its header claims {length} bytes, more than the format allows")
    if length == 0:
        _damaged(path, "its header is empty")
    if 8 + length > size:
        _damaged(path, f"its header claims {length} bytes, the file has {size}")
    content = _parse_json(path, source.read(length, 8))
    metadata = _metadata(path, content.pop("__metadata__", {}))
    data_start = 8 + length
    found = [_entry(path, name, value, data_start) for name, value in content.items()]
    entries = sorted(found, key=lambda entry: (entry.start, entry.stop))
    _check_coverage(path, entries, data_start, size)
    return Header({entry.name: entry for entry in entries}, metadata, data_start, size)


def is_pickle(prefix: bytes) -> bool:
    """Whether these first bytes are of a bare pickle or of a zip archive, as PyTorch writes it."""
    if len(prefix) >= 8 and int.from_bytes(prefix[:8], "little") <= MAX_HEADER_BYTES:
        return False  # a header of 640 bytes begins like a pickle
    bare = prefix[:1] == b"\x80" and 2 <= int.from_bytes(prefix[1:2], "little") <= 5
    return bare or prefix[:4] == b"PK\x03\x04"


def _refuse_other_formats(path: Path, prefix: bytes) -> None:
    name = shown_path(path)
    if not prefix:
        raise CheckpointError(f"{name} is empty", hint="download or copy it again")
    if is_pickle(prefix):
        raise CheckpointError(
            f"{name} is a pickle or zip archive, which can run code when it is loaded",
            hint="have it saved as safetensors by whoever you have it from",
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
    if b"\0" not in prefix and len(text.encode()) > len(prefix) - 4:
        raise CheckpointError(f"{name} is a text, not weights; it begins: {shown(text, 40)}")


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        _damaged(path, "its header is not a JSON object")
    try:
        content: dict[Any, Any] = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_table,
            parse_int=_natural,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError):
        _damaged(path, "its header is not valid JSON")
    if _TWICE in content:
        _damaged(path, f"its header names {shown(content[_TWICE])} twice")
    if not all(map(is_unicode, content)):
        _damaged(path, "the name of a tensor is not valid Unicode")
    return content


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[Any, Any]:
    """Make a table of a JSON object, remembering a name that it was given twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        [(table[_TWICE], _)] = Counter(name for name, _ in pairs).most_common(1)
    return table


def _natural(digits: str) -> int:
    """Read an integer of the format's range, 0 to 2^63 - 1; -1 stands for any other."""
    if len(digits) > 19 or digits[0] == "-":
        return -1
    value = int(digits)
    return value if value < 1 << 63 else -1


def _no_number(_: str) -> int:
    return -1


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can spell half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(path: Path, value: object) -> dict[str, str]:
    if isinstance(value, dict) and _TWICE in value:
        _damaged(path, f"its __metadata__ names {shown(value[_TWICE])} twice")
    if not isinstance(value, dict) or not all(
        isinstance(item, str) and is_unicode(key + item) for key, item in value.items()
    ):
        _damaged(path, "its __metadata__ is not a table of strings")
    return value


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    what = f"tensor {shown(name)}"
    if isinstance(value, dict) and _TWICE in value:
        _damaged(path, f"{what} has {shown(value[_TWICE])} twice")
    if not isinstance(value, dict) or value.keys() != _ENTRY_KEYS:
        _damaged(path, f"{what} lacks dtype, shape and data_offsets, or has more than these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _damaged(path, f"{what} has unknown dtype {shown(str(dtype))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        _damaged(path, f"{what} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _damaged(path, f"{what} has impossible data_offsets")
    if prod(filter(None, shape)) >= 1 << 63:
        _damaged(path, f"{what} has an impossible shape")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        expected, found = f"{bits / 8:.15g} bytes for {dtype}{shape}", offsets[1] - offsets[0]
        _damaged(path, f"{what}: expected {expected}, found {found}")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: object) -> bool:
    """Whether this is a list of integers, as `_natural` reads them; true and false are none."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


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
