"""Write a safetensors file tensor by tensor: the header is known from the plan.

No more than one tensor is in memory. Metadata that is only known at the end, such as digests
of the inputs, may replace a placeholder of the same length.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import DTYPE_BITS, MAX_HEADER_BYTES
from momacli.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array

_PART = 1 << 26
"""Bytes of one system call; between two of them an interrupt is heard."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written: its name, format type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.elements * DTYPE_BITS[self.dtype] // 8


def aligned(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Order tensors so that wider types come first and all data is aligned; else as given."""
    return sorted(specs, key=lambda spec: -DTYPE_BITS[spec.dtype])


class CheckpointWriter:
    """A file being written; each tensor has its place, so they may come in any order.

    Writes to `path` directly: stage it first. Use as a context manager. What the caller gets
    wrong (a type, a tensor left incomplete) is a ValueError, so that no such file is kept.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]):
        ordered = aligned(specs)
        self.path = path
        self._specs = {spec.name: spec for spec in ordered}
        if len(self._specs) < len(ordered):
            raise ValueError("two tensors have the same name")
        self._metadata = dict(metadata)
        self._header = _header(ordered, metadata)
        self._next: dict[str, int] = {}  # offset of the next byte of each tensor
        self._stop: dict[str, int] = {}
        offset = len(self._header)
        for spec in ordered:
            self._next[spec.name] = offset
            offset += spec.nbytes
            self._stop[spec.name] = offset
        self._file = path.open("wb", buffering=0)
        try:
            _reserve(self._file.fileno(), offset)
            self._write(memoryview(self._header), 0)
        except BaseException:
            self._file.close()
            raise

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Append values to tensor `name`, in row-major order and in the type of its spec.

        Several calls may bring one tensor in parts. Elements of four or six bits are given as
        their bytes.
        """
        buffer = as_bytes(name, self._specs[name].dtype, values)
        if self._next[name] + len(buffer) > self._stop[name]:
            raise ValueError(f"{name}: more values than its shape has")
        self._write(buffer, self._next[name])
        self._next[name] += len(buffer)

    def replace(self, name: str, start: int, values: "Tensor | Array") -> None:
        """Put values in the place of appended ones, from element `start` of tensor `name` on."""
        spec = self._specs[name]
        buffer = as_bytes(name, spec.dtype, values)
        place, rest = divmod(start * DTYPE_BITS[spec.dtype], 8)
        place += self._stop[name] - spec.nbytes
        if start < 0 or rest or place + len(buffer) > self._next[name]:
            raise ValueError(f"{name}: nothing was written there")
        self._write(buffer, place)

    def replace_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace these values of the metadata, by ones whose encoding has the same length."""
        header = _header(list(self._specs.values()), self._metadata | dict(metadata))
        if len(header) != len(self._header):
            raise ValueError(f"metadata of another length: {len(header)}, not {len(self._header)}")
        self._write(memoryview(header), 0)

    def close(self) -> None:
        """Close the file. All tensors must be complete."""
        self._file.close()
        missing = [name for name, position in self._next.items() if position < self._stop[name]]
        if missing:
            raise ValueError(f"not written in full: {', '.join(missing)}")

    def files(self) -> list[Path]:
        """Where the file is, while it is being written."""
        return [self.path]

    def leave_to_others(self, names: Iterable[str]) -> None:
        """Take these tensors for written: another process has put them in their places."""
        for name in names:
            self._next[name] = self._stop[name]

    def _write(self, buffer: memoryview, offset: int) -> None:
        write_at(self._file, buffer, offset)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(OSError):  # the first error is the one to be seen
                self._file.close()


def as_bytes(name: str, code: str, values: "Tensor | Array") -> memoryview:
    """The bytes of values of a format type; those of four or six bits are given as bytes.

    Raises ValueError for values of another type.
    """
    import numpy as np

    from momacli.checkpoint.arrays import array_dtype, as_array, is_held

    expected = array_dtype(code if is_held(code) else "U8", name)
    plain = values if isinstance(values, np.ndarray) else as_array(values)
    if plain.dtype != expected:
        raise ValueError(f"{name}: expected {expected}, found {plain.dtype}")
    return np.ascontiguousarray(plain).reshape(-1).view(np.uint8).data


def write_at(file: IO[bytes], buffer: memoryview, offset: int) -> None:
    """Write all of a buffer to a place in an unbuffered file."""
    file.seek(offset)
    done = 0
    while done < len(buffer):
        done += file.write(buffer[done : done + _PART])


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        if spec.name == "__metadata__" or spec.elements * DTYPE_BITS[spec.dtype] % 8:
            raise ValueError(f"{shown(spec.name)}: the format cannot hold such a tensor")
        span = [offset, offset + spec.nbytes]
        table[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(
            f"the names and the metadata take {len(text)} bytes, more than the format allows"
        )
    return len(text).to_bytes(8, "little") + text


def _reserve(descriptor: int, size: int) -> None:
    """Take the space now: a full disk shows before the work, not after it."""
    os.ftruncate(descriptor, size)
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            return  # this file system cannot
        raise OSError(error.errno, f"{error.strerror}, {size} bytes needed") from error
