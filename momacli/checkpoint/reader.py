"""One model's tensors on disk, known by their headers and read one at a time.

A checkpoint is a `.safetensors` file, a model folder (`config.json` and
`model.safetensors`), or a folder whose `model.safetensors.index.json` names its shards. Data
is read with `pread` into memory of its own, never mapped: a file cut short during a run gives
an error that names it.
"""

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.header import Header, TensorEntry, parse_header, shown
from momacli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorFile:
    """One open safetensors file, hashed from the bytes that pass by anyway."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self.header: Header = parse_header(path, self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._digest = hashlib.sha256()
        self._hashed = 0  # bytes from the start that the digest has seen

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on. Raises CheckpointError if cut short."""
        self._pread(buffer, offset)
        if self._hashed == offset:
            self._digest.update(buffer)
            self._hashed += len(buffer)

    def start_hash(self) -> None:
        """Hash what is read from now on, so that `sha256` need not read it again."""
        self._hash_up_to(self.header.data_start)

    def sha256(self) -> str:
        """SHA-256 of the whole file, reading only what has not passed by in order."""
        self._hash_up_to(self.header.file_size)
        return self._digest.hexdigest()

    def _hash_up_to(self, stop: int) -> None:
        while self._hashed < stop:
            block = memoryview(bytearray(min(1 << 20, stop - self._hashed)))
            self._pread(block, self._hashed)
            self._digest.update(block)
            self._hashed += len(block)

    def _pread(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path} became shorter while it was read: expected "
                    f"{self.header.file_size} bytes, found {offset + done}",
                    hint="let nothing write to the inputs during a run",
                )
            done += count

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Checkpoint:
    """A model's tensors by name; headers are read on opening, data when asked for.

    Use as a context manager, or call `close`.
    """

    def __init__(self, path: Path, name: str, files: Iterable[TensorFile]):
        self.path = path
        self.name = name
        self.files = tuple(files)
        self._where: dict[str, tuple[TensorFile, TensorEntry]] = {}
        for file in self.files:
            for key, entry in file.header.entries.items():
                if key in self._where:
                    raise CheckpointError(
                        f"{path} holds tensor {shown(key)} in two files: "
                        f"{self._where[key][0].path.name} and {file.path.name}"
                    )
                self._where[key] = (file, entry)

    @classmethod
    def open(cls, path: Path, *, name: str | None = None) -> "Checkpoint":
        """Open a file or folder. Raises CheckpointError, naming what is damaged or missing."""
        with ExitStack() as stack:
            files = []
            for part in weight_files(path):
                file = TensorFile(part)
                stack.callback(file.close)
                files.append(file)
            checkpoint = cls(path, name or task_name(path), files)
            if path.is_dir():
                _check_index(path, checkpoint)
            stack.pop_all()
            return checkpoint

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Every tensor's header entry, in the order of the data on disk."""
        return {key: entry for key, (_, entry) in self._where.items()}

    @property
    def is_folder(self) -> bool:
        """Whether this is a model folder rather than a bare file."""
        return self.path.is_dir()

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The first file's metadata."""
        return self.files[0].header.metadata

    def read(self, key: str) -> "Tensor":
        """Read one tensor, in its own type, into memory of its own."""
        entry = self._where[key][1]
        return self.read_range(key, 0, entry.elements).reshape(entry.shape)

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Read elements start to stop of one tensor, flattened in row-major order."""
        import torch

        from momacli.checkpoint.dtypes import torch_dtype

        file, entry = self._where[key]
        dtype = torch_dtype(entry.dtype, f"tensor {shown(key)} of {file.path}")
        flat = torch.empty(stop - start, dtype=dtype)
        if flat.numel():
            buffer = flat.view(torch.uint8).numpy().data
            file.read_into(buffer, entry.start + start * flat.element_size())
        return flat

    def start_hash(self) -> None:
        """Hash what is read from now on, so that `sha256` need not read it again."""
        for file in self.files:
            file.start_hash()

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file by its name within the folder (or its own name)."""
        return {file.path.name: file.sha256() for file in self.files}

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


def weight_files(path: Path) -> list[Path]:
    """The safetensors files a checkpoint consists of. Raises CheckpointError if there are none."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", hint="check the path and its spelling")
    if not path.is_dir():
        return [path]
    if (path / INDEX).is_file():
        return [path / shard for shard in _shards(path / INDEX)]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return others
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)]
    hint = (
        f"{pickles[0]} is a pickle, which can run code: save the model as safetensors first"
        if pickles
        else "give a .safetensors file or a folder written by save_pretrained"
    )
    raise CheckpointError(f"{path} holds no {SINGLE} and no {INDEX}", hint=hint)


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises CheckpointError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON") from error


def _weight_map(index: Path) -> Mapping[str, str]:
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names")
    return table


def _shards(index: Path) -> list[str]:
    """Names of the shards an index lists, in order; only plain names inside its folder pass."""
    names = list(dict.fromkeys(_weight_map(index).values()))
    for name in names:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not name:
            raise CheckpointError(
                f"{index} points outside its folder: {shown(name)}",
                hint="an index may only name files beside it; do not trust this download",
            )
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index} lists shards that are not there", details=[shown(name) for name in missing]
        )
    return names


def _check_index(folder: Path, checkpoint: Checkpoint) -> None:
    if not (folder / INDEX).is_file():
        return
    table = _weight_map(folder / INDEX)
    wrong = [
        f"{shown(key)}: expected in {shown(table[key])}, not found there"
        for key in table
        if key not in checkpoint._where or checkpoint._where[key][0].path != folder / table[key]
    ]
    wrong += [f"{shown(key)}: not in the index" for key in checkpoint._where if key not in table]
    if wrong:
        raise CheckpointError(f"{folder / INDEX} does not match its shards", details=wrong)


def matches(key: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name matches one of the glob patterns."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def iterate_blocks(elements: int, block: int) -> Iterator[tuple[int, int]]:
    """Split `elements` in consecutive ranges (start, stop) of at most `block`."""
    for start in range(0, elements, block):
        yield start, min(start + block, elements)
