"""One model's tensors on disk, known by their headers and read one at a time.

A checkpoint is a `.safetensors` file, a model folder (`config.json` and
`model.safetensors`), a folder whose `model.safetensors.index.json` names its shards, or the
folder of a PEFT adapter, of which its factors are read as they are. Data is read with `pread`
into memory of its own, never mapped: a file cut short during a run gives an error that names it.
"""

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.hashed_file import HashedFile
from momacli.checkpoint.header import DTYPE_BITS, Header, TensorEntry, parse_header
from momacli.checkpoint.source import Source
from momacli.checkpoint.weight_files import ADAPTER, ADAPTER_CONFIG, INDEX, weight_files
from momacli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array
    from momacli.checkpoint.stored import StoredTensor


_PART = 1 << 22
"""Elements of a part of a tensor that is carried along: 4 to 32 MB."""


class TensorFile(HashedFile):
    """One open safetensors file."""

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            self.header: Header = parse_header(self._source)
        except BaseException:
            self.close()
            raise

    def start_hash(self, first: int = 1) -> None:
        """Hash what is read from now on; the header has been read."""
        super().start_hash(max(first, self.header.data_start))


class Checkpoint:
    """A model's tensors by name; headers are read on opening, data when asked for.

    Use as a context manager, or call `close`.
    """

    def __init__(
        self, path: Path, name: str, files: Iterable[TensorFile], beside: Iterable[Path] = ()
    ):
        """beside: files without tensors that what it means depends on."""
        self.path = path
        self.name = name
        self.files = tuple(files)
        self.beside = tuple(beside)
        self._where: dict[str, tuple[TensorFile, TensorEntry]] = {}
        twice = []
        for file in self.files:
            for key, entry in file.header.entries.items():
                if key in self._where:
                    first = shown_path(Path(self._where[key][0].path.name))
                    second = shown_path(Path(file.path.name))
                    twice.append(f"{shown(key)}: in {first} and in {second}")
                self._where[key] = (file, entry)
        if twice:
            raise CheckpointError(
                f"{shown_path(path)} holds tensors in more than one of its files",
                details=twice,
                hint="download or save the folder again; shards of two models may be mixed",
            )

    @classmethod
    def open(cls, path: Path, *, name: str | None = None) -> "Checkpoint":
        """Open a file or folder. Raises CheckpointError, naming what is damaged or missing."""
        parts, index = weight_files(path)
        with ExitStack() as stack:
            files = []
            for part in parts:
                file = TensorFile(part)
                stack.callback(file.close)
                files.append(file)
            beside = [path / ADAPTER_CONFIG] if parts == [path / ADAPTER] else []
            checkpoint = cls(path, name or task_name(path), files, beside)
            if index is not None:
                _check_index(path / INDEX, index, checkpoint)
            stack.pop_all()
            return checkpoint

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor's header entry, in the order of the data on disk."""
        return {key: entry for key, (_, entry) in self._where.items()}

    @cached_property
    def is_folder(self) -> bool:
        """Whether this is a model folder rather than a bare file."""
        return self.path.is_dir()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The first file's metadata."""
        return self.files[0].header.metadata

    def read(self, key: str) -> "Tensor":
        """Read one tensor, in its own type, into memory of its own.

        Elements of four or six bits come as their bytes, flat: enough to carry them along.
        """
        from momacli.checkpoint.arrays import as_tensor

        return as_tensor(self.read_array(key))

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Read elements start to stop of one tensor, flattened in row-major order."""
        from momacli.checkpoint.arrays import as_tensor

        return as_tensor(self._read_range(key, start, stop))

    def read_array(self, key: str) -> "Array":
        """Like `read`, as an array."""
        from momacli.checkpoint.arrays import is_held

        entry = self._where[key][1]
        if not is_held(entry.dtype):
            return self._read_bytes(key, 0, entry.nbytes)
        return self._read_range(key, 0, entry.elements).reshape(entry.shape)

    def read_in_parts(self, key: str) -> "Iterator[Array]":
        """Read one tensor, in its own type, flat, a few megabytes after another."""
        from momacli.checkpoint.arrays import is_held

        entry = self._where[key][1]
        if not is_held(entry.dtype):
            yield self.read_array(key)
            return
        for start, stop in iterate_blocks(entry.elements, _PART):
            yield self._read_range(key, start, stop)

    concurrent = True
    """Whether several checkpoints may be read at once, each in a thread of its own."""

    def expect(self, key: str, start: int, stop: int) -> None:
        """Say that elements start to stop of a tensor will be read soon."""
        file, entry = self._where[key]
        width = DTYPE_BITS[entry.dtype]
        first = start * width // 8
        file.expect(entry.start + first, max(0, min(stop * width // 8, entry.nbytes) - first))

    def read_to(self, out: "Array", key: str, start: int) -> None:
        """Fill `out`, flat, with the elements from `start` on, converted to its type.

        What is read is hashed in this thread.
        """
        self.stored(key).read_to(out, start)

    def stored(self, key: str) -> "StoredTensor":
        """A tensor to be read in pieces. Raises CheckpointError if no array can hold it."""
        from momacli.checkpoint.stored import StoredTensor

        return StoredTensor(*self._where[key])

    def _read_range(self, key: str, start: int, stop: int) -> "Array":
        entry = self._where[key][1]
        if not 0 <= start <= stop <= entry.elements:
            raise IndexError(f"{start} to {stop} of the {entry.elements} elements of {shown(key)}")
        dtype = self.stored(key).dtype
        width = dtype.itemsize
        return self._read_bytes(key, start * width, stop * width).view(dtype)

    def _read_bytes(self, key: str, start: int, stop: int) -> "Array":
        import numpy as np

        file, entry = self._where[key]
        try:
            flat = np.empty(stop - start, dtype=np.uint8)
        except MemoryError as error:
            raise CheckpointError(
                f"tensor {shown(key)} of {shown_path(file.path)} does not fit in memory: "
                f"{stop - start} bytes"
            ) from error
        if flat.size:
            file.read_into(flat.data, entry.start + start)
        return flat

    def start_hash(self) -> None:
        """Hash what is read from now on, so that `sha256` need not read it again."""
        for file in self.files:
            file.start_hash()

    @property
    def file_names(self) -> list[str]:
        """The names, within the folder, of the files that `sha256` is of."""
        return [file.path.name for file in self.files] + [path.name for path in self.beside]

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file by its name within the folder (or its own name)."""
        digests = {file.path.name: file.sha256() for file in self.files}
        return digests | {path.name: _digest_of(path) for path in self.beside}

    def hash_anew(self) -> None:
        """Let `sha256` be of every byte that is there, whatever was remembered of the files."""
        for file in self.files:
            file.hash_anew()

    def place_of(self, key: str) -> tuple[int, int, int]:
        """Device, inode and offset: the same for two names of one tensor on disk."""
        file, entry = self._where[key]
        return (*file.identity, entry.start)

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def task_name(path: Path) -> str:
    """The task a path stands for: the file's stem or the folder's name."""
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    return name.removesuffix(".safetensors")


def _digest_of(path: Path) -> str:
    with Source(path) as source:
        return hashlib.sha256(source.read(source.size, 0)).hexdigest()


def is_adapter(checkpoint: Checkpoint) -> bool:
    """Whether this is a PEFT adapter, as it lies on disk."""
    return any(path.name == ADAPTER_CONFIG for path in checkpoint.beside)


def _check_index(index: Path, table: Mapping[str, str], checkpoint: Checkpoint) -> None:
    found = {key: file.path.name for file in checkpoint.files for key in file.header.entries}
    wrong = [
        f"{shown(key)}: expected in {shown(name)}, found {shown(found.get(key, 'nowhere'))}"
        for key, name in table.items()
        if found.get(key) != name
    ]
    wrong += [f"{shown(key)}: not in the index" for key in found if key not in table]
    if wrong:
        raise CheckpointError(
            f"{shown_path(index)} does not match its shards",
            details=wrong,
            hint="download or save the folder again",
        )


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name matches one of the glob patterns, or is within a module named."""
    return any(
        fnmatch.fnmatchcase(key, pattern) or key.startswith(f"{pattern}.") for pattern in patterns
    )


def iterate_blocks(elements: int, block: int) -> Iterator[tuple[int, int]]:
    """Split `elements` in consecutive ranges (start, stop) of at most `block`."""
    for start in range(0, elements, block):
        yield start, min(start + block, elements)
