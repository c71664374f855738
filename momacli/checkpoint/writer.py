"""Write a safetensors file tensor by tensor: the header is known from the plan.

No more than one tensor is in memory. Metadata that is only known at the end, such as digests
of the inputs, may replace a placeholder of the same length.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from momacli.checkpoint.header import DTYPE_BITS, shown

if TYPE_CHECKING:
    from torch import Tensor


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

    Writes to `path` directly: stage it first. Use as a context manager.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str]):
        self._specs = aligned(specs)
        self._header = _header(self._specs, metadata)
        self._next: dict[str, int] = {}  # offset of the next byte of each tensor
        self._stop: dict[str, int] = {}
        offset = len(self._header)
        for spec in self._specs:
            self._next[spec.name] = offset
            offset += spec.nbytes
            self._stop[spec.name] = offset
        self._bits = {spec.name: DTYPE_BITS[spec.dtype] for spec in self._specs}
        self._file = path.open("wb", buffering=0)
        self._write(memoryview(self._header), 0)

    def append(self, name: str, values: "Tensor") -> None:
        """Append values to tensor `name`, in row-major order and in the type of its spec.

        Several calls may bring one tensor in parts.
        """
        import torch

        flat = values.detach().contiguous().reshape(-1)
        assert flat.element_size() * 8 == self._bits[name], f"{name}: wrong type {flat.dtype}"
        if flat.numel():
            buffer = flat.cpu().view(torch.uint8).numpy().data
            assert self._next[name] + len(buffer) <= self._stop[name], f"{name}: too many values"
            self._write(buffer, self._next[name])
            self._next[name] += len(buffer)

    def replace_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace the metadata by one whose encoding has the same length."""
        header = _header(self._specs, metadata)
        assert len(header) == len(self._header)
        self._write(memoryview(header), 0)

    def close(self) -> None:
        """Close the file. All tensors must be complete."""
        missing = [name for name, position in self._next.items() if position < self._stop[name]]
        assert not missing, f"not written: {missing}"
        self._file.close()

    def _write(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            part = buffer[done : done + (1 << 30)]
            done += os.pwrite(self._file.fileno(), part, offset + done)

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
            self._file.close()


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        assert spec.name not in table, f"{shown(spec.name)} twice"
        span = [offset, offset + spec.nbytes]
        table[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
