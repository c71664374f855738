"""Outputs are old or new, never half: write beside the target, fsync, rename.

A staged file or folder carries a name that tells what it is (`.NAME.moma-XXXX.tmp`) and a lock
held while its run lives, so that the next run to the same output can remove what a killed run
left behind, and nothing else.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from momacli.errors import OutputError

if sys.platform != "win32":
    import fcntl

_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # macOS sys/stdio.h
_AT_FDCWD = -100


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends without an exception."""
    with _writing(target):
        _remove_leftovers(target)
        staged = _staged_name(target)
        descriptor = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            _lock(descriptor)
            yield staged
            os.fsync(descriptor)
            os.replace(staged, target)  # noqa: PTH105 - the call whose atomicity we rely on
            _sync_folder(target.parent)
        finally:
            os.close(descriptor)
            staged.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` when the block ends well.

    An existing target is exchanged in one step where the system can (Linux, macOS), and is
    removed after.
    """
    with _writing(target):
        _remove_leftovers(target)
        staged = _staged_name(target)
        staged.mkdir()
        descriptor = os.open(staged, os.O_RDONLY)
        try:
            _lock(descriptor)
            yield staged
            for path in sorted(staged.rglob("*")):
                _sync(path)
            os.fsync(descriptor)
            if target.exists():
                _exchange(staged, target)
            else:
                staged.rename(target)
            _sync_folder(target.parent)
        finally:
            os.close(descriptor)
            shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}",
            hint="the previous output, if any, is untouched",
        ) from error


def _staged_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.moma-{secrets.token_hex(4)}.tmp")


def _remove_leftovers(target: Path) -> None:
    """Remove what a killed run to this target left; a live run holds its lock."""
    for path in target.parent.glob(f".{_escape(target.name)}.moma-????????.tmp"):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            if _lock(descriptor):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lock(descriptor: int) -> bool:
    """Take the lock that says "alive"; False when another process holds it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _sync(folder)


def _exchange(staged: Path, target: Path) -> None:
    """Swap two folders in one step; where the system cannot, in three with the old one kept."""
    if _exchange_in_one_step(staged, target):
        return
    aside = _staged_name(target)
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange_in_one_step(staged: Path, target: Path) -> bool:
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(staged), os.fsencode(target)
    if hasattr(library, "renameat2"):
        return bool(library.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE) == 0)
    if hasattr(library, "renamex_np"):
        return bool(library.renamex_np(old, new, _RENAME_SWAP) == 0)
    return False
