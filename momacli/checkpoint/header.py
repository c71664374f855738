"""The header of a safetensors file, read as strictly as the format is written.

A file is 8 bytes of little-endian header length, that many bytes of JSON, then the data:
    {"__metadata__": {str: str}, name: {"dtype": str, "shape": [int], "data_offsets": [a, b]}}
Every promise of the format is checked here, before any data is read, and memory is only taken
for what the file really holds: https://github.com/huggingface/safetensors#format
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from momacli.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MAX_DIMENSIONS = 64
"""More than any tensor has; keeps a hostile header from costing time."""

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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        return parse_header(path, descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def parse_header(path: Path, descriptor: int) -> Header:
    """Like `read_header`, on an open descriptor; `path` is for the messages."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{path} is {kind}, expected a .safetensors file")
    size = status.st_size
    prefix = os.pread(descriptor, 512, 0)
    _refuse_other_formats(path, prefix, size)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        _damaged(path, f"its header claims {length} bytes, more than the format allows")
    if 8 + length > size:
        _damaged(path, f"its header claims {length} bytes, the file has {size}")
    raw = os.pread(descriptor, length, 8)
    if len(raw) < length:
        _damaged(path, "it became shorter while it was read")
    content = _parse_json(path, raw)
    metadata = _metadata(path, content.pop("__metadata__", {}))
    data_start = 8 + length
    found = [_entry(path, name, value, data_start) for name, value in content.items()]
    entries = sorted(found, key=lambda entry: (entry.start, entry.stop))
    _check_coverage(path, entries, data_start, size)
    return Header({entry.name: entry for entry in entries}, metadata, data_start, size)


def _refuse_other_formats(path: Path, prefix: bytes, size: int) -> None:
    if size == 0:
        raise CheckpointError(f"{path} is empty", hint="download or copy it again")
    if prefix.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the weights", hint="run: git lfs pull"
        )
    if prefix.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not weights", hint="download it again")
    if is_pickle(prefix):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is loaded; moma does not read it",
            hint="convert it to safetensors where you trust it",
        )
    if size < 8 or len(prefix) < 8:
        _damaged(path, f"it has {size} bytes, not even a header")


def is_pickle(prefix: bytes) -> bool:
    """Whether these first bytes are of a PyTorch zip archive or a bare pickle."""
    return prefix[:4] == b"PK\x03\x04" or (
        prefix[:1] == b"\x80" and prefix[1:2] in b"\x02\x03\x04\x05"
    )


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                _damaged(path, f"its header names {shown(key)} twice")
            result[key] = value
        return result

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError):
        _damaged(path, "its header is not valid JSON")
    if not isinstance(content, dict):
        _damaged(path, "its header is not a JSON object")
    return content


def _metadata(path: Path, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _damaged(path, "its __metadata__ is not a table of strings")
    return value


def _entry(path: Path, name: str, value: object, data_start: int) -> TensorEntry:
    what = f"tensor {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _damaged(path, f"{what} lacks dtype, shape and data_offsets, or has more than these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _damaged(path, f"{what} has unknown dtype {shown(str(dtype))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        _damaged(path, f"{what} has an impossible shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _damaged(path, f"{what} has impossible data_offsets")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        found = offsets[1] - offsets[0]
        _damaged(path, f"{what}: expected {bits / 8:g} bytes for {dtype}{shape}, found {found}")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def _check_coverage(path: Path, entries: list[TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for entry in entries:
        if entry.start < position:
            _damaged(path, f"tensor {shown(entry.name)} overlaps the one before it")
        if entry.start > position:
            _damaged(path, f"there is a hole before tensor {shown(entry.name)}")
        position = entry.stop
    if position > size:
        _damaged(path, f"it is truncated: expected {position} bytes, found {size}")
    if position < size:
        _damaged(path, f"{size - position} bytes follow after the last tensor")


def shown(text: str, limit: int = 120) -> str:
    """Text from a file as a message may show it: control characters escaped, cut if long."""
    escaped = "".join(_printable(text[: limit + 1]))
    return escaped if len(text) <= limit else escaped[:limit] + "…"


def _printable(text: str) -> Iterator[str]:
    for character in text:
        if character.isprintable():
            yield character
        else:
            yield character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _damaged(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path} is not a sound safetensors file: {why}", hint="download or write it again"
    )
