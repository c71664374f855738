"""One pickle opened, and its model found and checked, ready to be written as safetensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.hashed_file import HashedFile
from momacli.checkpoint.header import is_pickle
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import CheckpointError, ConflictError
from momacli.pickles.files import read_pickle
from momacli.pickles.finding import AmbiguousError, Found, find_model
from momacli.pickles.values import Global, TensorView
from momacli.pickles.window import MalformedError
from momacli.progress import Listener, Progress

if TYPE_CHECKING:
    from momacli.checkpoint.writer import CheckpointWriter

_LARGEST_GROWTH = 8
_SMALL = 1 << 24
"""Views may share their elements, but together they may not take more bytes than this, and this
many times the bytes of the file: a few bytes could stand for any number."""


class PickledModel:
    """A model in an open file; call `close` in the end."""

    def __init__(self, path: Path, *, entry: str | None = None):
        """Read the pickle; no tensor. Raises CheckpointError, and ConflictError naming entries.

        entry: where the model is in a table that holds more than one.
        """
        self.path = path
        self._file = HashedFile(path)
        try:
            if not is_pickle(self._file_start()):
                raise CheckpointError(
                    f"{shown_path(path)} is no pickle and no archive of torch.save",
                    hint="convert is for .pt, .pth, .bin and .pkl files; others need none of it",
                )
            with self._explained():
                pickled = read_pickle(self._file)
                self.globals: frozenset[Global] = frozenset(pickled.globals)
                self.found: Found = find_model(pickled.value, entry)
            self._check()
        except BaseException:
            self.close()
            raise

    def _file_start(self) -> bytes:
        start = bytearray(min(512, self._file.size))
        self._file.read_into(memoryview(start), 0)
        return bytes(start)

    def _check(self) -> None:
        name = shown_path(self.path)
        tensors = self.found.tensors
        if self.found.unsupported:
            raise CheckpointError(
                f"{name} holds tensors that a safetensors file cannot hold",
                details=[f"{shown(k)}: {what}" for k, what in self.found.unsupported.items()],
                hint="make them dense, plain tensors where the file was made",
            )
        odd = [key for key in (*tensors, *self.found.tied) if not _is_name(key)]
        if odd:
            raise CheckpointError(
                f"{name} has names that no tensor can have", details=[shown(key) for key in odd]
            )
        if not tensors:
            raise CheckpointError(f"{name} holds no tensors")
        nbytes = sum(spec.nbytes for spec in self.specs)
        if nbytes > _SMALL + _LARGEST_GROWTH * self._file.size:
            raise CheckpointError(
                f"{name} has {self._file.size} bytes, its tensors would take {nbytes}: they are "
                "views of the same few elements",
                hint="save the model with tensors of their own: clone() them first",
            )

    @property
    def specs(self) -> list[TensorSpec]:
        """What is to be written."""
        return [
            TensorSpec(name, view.dtype, view.shape) for name, view in self.found.tensors.items()
        ]

    def copy(self, writer: "CheckpointWriter", listener: Listener) -> None:
        """Write all tensors, hashing the file on the way. Raises CheckpointError."""
        from momacli.pickles.copying import copy_tensors

        total = sum(view.storage.nbytes for view in _one_of_each(self.found.tensors))
        done = 0
        self._file.start_hash()
        with self._explained():
            for count in copy_tensors(self.found.tensors, writer):
                done += count
                listener(Progress(f"converting {self.path.name}", done, total, "bytes"))

    def sha256(self) -> dict[str, str]:
        """SHA-256 of the file by its name."""
        return {self.path.name: self._file.sha256()}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Name the file in what is wrong with it."""
        try:
            yield
        except AmbiguousError as error:
            self._refuse_entries(error)
        except MalformedError as error:
            raise CheckpointError(
                f"{shown_path(self.path)} cannot be converted: {error}",
                hint="if it was cut off or damaged on its way, download it again",
            ) from error

    def _refuse_entries(self, error: AmbiguousError) -> NoReturn:
        raise ConflictError(
            f"{shown_path(self.path)}: {error}",
            details=[shown(entry) for entry in error.entries],
            hint="say which with --entry NAME" if error.entries else None,
        ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _one_of_each(tensors: Mapping[str, TensorView]) -> list[TensorView]:
    return list({id(view.storage): view for view in tensors.values()}.values())


def _is_name(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name != "__metadata__"
