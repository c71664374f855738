"""Write some tensors of safetensors files that another process has made and will finish."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from momacli.checkpoint.header import TensorEntry, read_header
from momacli.checkpoint.writer import as_bytes, write_at

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array


class JoinedWriter:
    """Takes tensors in consecutive parts; each has its place in a file that is there already."""

    def __init__(self, places: Mapping[str, tuple[BinaryIO, TensorEntry]]):
        self._places = places
        self._written: dict[str, int] = {}  # bytes

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Append values to tensor `name`, in row-major order and in its type."""
        file, entry = self._places[name]
        buffer = as_bytes(name, entry.dtype, values)
        done = self._written.get(name, 0)
        if done + len(buffer) > entry.nbytes:
            raise ValueError(f"{name}: more values than its shape has")
        write_at(file, buffer, entry.start + done)
        self._written[name] = done + len(buffer)

    def check_complete(self) -> None:
        """Raise ValueError if a tensor that was begun is not written in full."""
        for name, done in self._written.items():
            if done < self._places[name][1].nbytes:
                raise ValueError(f"{name}: not written in full")


@contextmanager
def joined_writer(files: Iterable[Path]) -> Iterator[JoinedWriter]:
    """Open files for writing in places; what is written is on disk when the block ends."""
    with ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, TensorEntry]] = {}
        opened = []
        for path in files:
            header = read_header(path)
            file = stack.enter_context(path.open("r+b", buffering=0))
            opened.append(file)
            places |= {key: (file, entry) for key, entry in header.entries.items()}
        writer = JoinedWriter(places)
        yield writer
        writer.check_complete()
        for file in opened:
            os.fsync(file.fileno())
