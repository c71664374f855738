"""An input file: a regular one, read at positions into the caller's memory, never mapped.

A mapped file that is cut short kills the process with SIGBUS; here it is an error that names
the file, and so is a file that changes between the first look at it and the last read.
A file that is replaced by another of its name is read on as it was when it was opened.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from types import TracebackType

from momacli.checkpoint.digests import FileState
from momacli.checkpoint.escaping import shown_path
from momacli.errors import CheckpointError

_PART = 1 << 26
"""Bytes of one system call; between two of them an interrupt is heard."""

_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # not every system has each
    _FLAGS |= getattr(os, _name, 0)

_ADVISE = getattr(os, "posix_fadvise", None)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Source:
    """One open input file. Use as a context manager, or call `close`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            _refuse_irregular(path, path.stat().st_mode)  # to open a device may set it going
            self._descriptor = os.open(path, _FLAGS)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        status = os.fstat(self._descriptor)
        self.state = FileState.of(status)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        self._written = status.st_mtime_ns
        try:
            _refuse_irregular(path, status.st_mode)
        except BaseException:
            self.close()
            raise

    def read(self, count: int, offset: int) -> bytes:
        """Read `count` bytes from `offset` on, or fewer where the file ends."""
        block = bytearray(max(0, min(count, self.size - offset)))
        self.read_into(memoryview(block), offset)
        return bytes(block)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on.

        Raises CheckpointError if the file is shorter than it was, or was written to.
        """
        done, whole = 0, len(buffer)
        try:
            while done < whole:
                part = buffer[done : done + _PART] if done or whole > _PART else buffer
                count = _read_at(self._descriptor, part, offset + done)
                if count == 0:
                    raise self._changed(f"now {offset + done} bytes long, before {self.size}")
                done += count
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if status.st_size != self.size:
            raise self._changed(f"now {status.st_size} bytes long, before {self.size}")
        if status.st_mtime_ns != self._written:
            raise self._changed("something wrote to it")

    def expect(self, offset: int, length: int) -> None:
        """Let the system read ahead, where it can; nothing is lost where it does not."""
        if _ADVISE is not None and not _is_in_memory(self._descriptor, offset + length - 1):
            with contextlib.suppress(OSError):
                _ADVISE(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def is_unchanged(self) -> bool:
        """Whether nothing at all happened to the file since it was opened."""
        return FileState.of(os.fstat(self._descriptor)) == self.state

    def _changed(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{shown_path(self.path)} changed while it was read: {how}",
            hint="run again, and let nothing write to the inputs meanwhile",
        )

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def kind_of(mode: int) -> str | None:
    """What a file is, if it is no regular file: a folder, a pipe, a device."""
    if stat.S_ISREG(mode):
        return None
    return next((kind for test, kind in _KINDS if test(mode)), "no regular file")


def unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    """The error of a file that cannot be opened or read, in the user's terms."""
    name = shown_path(path)
    if isinstance(error, ValueError):  # a NUL in the name
        return CheckpointError(f"{name} is not the name of a file")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            place = shown_path(path.readlink())
            return CheckpointError(f"{name} is a link to {place}, which does not exist")
        return CheckpointError(f"{name} does not exist", hint="check the path and its spelling")
    hint = None
    if error.errno == errno.EMFILE:
        hint = "raise the number of files one program may have open: ulimit -n 8192"
    return CheckpointError(f"{name} cannot be read: {error.strerror}", hint=hint)


def _refuse_irregular(path: Path, mode: int) -> None:
    kind = kind_of(mode)
    if kind is not None:
        raise CheckpointError(
            f"{shown_path(path)} is {kind}, expected a regular file",
            hint="a checkpoint is read in places: save it to a file first"
            if kind != "a folder"
            else None,
        )


if hasattr(os, "preadv"):

    def _read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:

    def _read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
        os.lseek(descriptor, offset, os.SEEK_SET)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readinto(buffer)


def _is_in_memory(descriptor: int, offset: int) -> bool:
    """Whether the system has a byte of a file at hand, as far as it tells.

    Then it has those before it, as a rule, and to have it look for each of them takes longer.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it has not, or cannot tell
        return False
