"""One tensor in an open file, read piece by piece into the caller's memory."""

import numpy as np

from momacli.checkpoint.arrays import Array, array_dtype, fill, is_held
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.hashed_file import HashedFile, Passing
from momacli.checkpoint.header import TensorEntry

_CONVERTED = 1 << 18
"""Elements held in the type of the file while they are converted."""


class StoredTensor:
    """Where a tensor is, found out once for all its pieces."""

    def __init__(self, file: HashedFile, entry: TensorEntry):
        """Raises CheckpointError if no array can hold its elements."""
        held = is_held(entry.dtype)
        what = "" if held else f"tensor {shown(entry.name)} of {shown_path(file.path)}"
        self.dtype = array_dtype(entry.dtype, what)
        self._read = file.read_here
        self._start = entry.start

    def read_to(self, out: Array, start: int, passing: Passing | None = None) -> None:
        """Fill `out`, flat, with the elements from `start` on, converted to its type.

        What is read is hashed in this thread: at once, unless `passing` takes it.
        """
        width = self.dtype.itemsize
        offset = self._start + start * width
        if out.dtype == self.dtype:
            if out.size:
                self._read(out.view(np.uint8).data, offset, passing)
            return
        for first in range(0, out.size, _CONVERTED):
            stored = np.empty(min(_CONVERTED, out.size - first), dtype=self.dtype)
            self._read(stored.view(np.uint8).data, offset + first * width, passing)
            fill(out[first : first + stored.size], stored)
