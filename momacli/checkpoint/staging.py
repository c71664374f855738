"""Outputs are old or new, never half: write beside the target, fsync, rename.

What is being written is called `.NAME.moma.tmp`, is made exclusively, and carries a lock while
its run lives. So a second run to the same output is told, what a killed run left is removed by
the next run to that output, and what a live one has is left alone. A link as the target is
followed, as the shell does; a folder is exchanged with the old one in one step where the
system can (Linux, macOS).
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.source import kind_of
from momacli.errors import OutputError

if sys.platform != "win32":
    import fcntl

_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # macOS sys/stdio.h
_AT_FDCWD = -100
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_MAX_NAME = 200
"""Bytes of a target's name that leave room for what is put around it."""


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends without an exception.

    Raises OutputError, naming the target, for whatever the system refuses, and at once if
    another run is writing to it.
    """
    with _writing(target) as place:
        _refuse_kind(target, place, folder=False)
        with _claimed(place, folder=False) as (staged, descriptor):
            yield staged
            os.fsync(descriptor)
            _check_ours(target, staged, descriptor)
            staged.replace(place)  # atomic: rename(2)
        _sync_folder(place.parent)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `target` when the block ends well.

    An existing target goes, with all that is in it, when the new one has its name. Raises
    OutputError like `staged_file`.
    """
    with _writing(target) as place:
        _refuse_kind(target, place, folder=True)
        with _claimed(place, folder=True) as (staged, descriptor):
            _bring_back(place)
            yield staged
            for path in sorted(staged.rglob("*")):
                _sync(path)
            os.fsync(descriptor)
            _check_ours(target, staged, descriptor)
            _install_folder(staged, place)
        _sync_folder(place.parent)


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """Yield where the target really is, in a folder that exists; explain what goes wrong."""
    made: list[Path] = []
    try:
        place = Path(os.path.realpath(target))
        made = [folder for folder in place.parents if not folder.exists()]
        nearest = next(folder for folder in (*place.parents, place) if folder not in made)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), nearest)
        place.parent.mkdir(parents=True, exist_ok=True)
        yield place
        for folder in made:
            _sync_folder(folder.parent)
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise _unwritable(target, error) from error
        raise


def _unwritable(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    culprit = "" if error.filename is None else os.fsdecode(error.filename)
    if culprit and ".moma.tmp" not in culprit and Path(culprit).name != target.name:
        reason += f" ({shown_path(Path(culprit))})"
    return OutputError(
        f"{shown_path(target)} cannot be written: {reason}",
        hint="what was there before, if anything, is as it was",
    )


def _refuse_kind(target: Path, place: Path, *, folder: bool) -> None:
    """Refuse a target that nothing may or can be renamed to."""
    name = shown_path(target)
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        mode = None
    if not place.name or (folder and (place.is_mount() or _is_here(place))):
        raise OutputError(
            f"{name} cannot be replaced as a whole", hint="name a folder that is to be made in it"
        )
    if mode is not None and not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        found, wanted = kind_of(mode) or "a file", "folder" if folder else "file"
        raise OutputError(f"{name} is {found}, where a {wanted} is to be written")


def _is_here(place: Path) -> bool:
    """Whether this is the current folder or one that holds it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return False
    return place in (here, *here.parents)


@contextmanager
def _claimed(place: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """Make the staged file or folder and hold it; it goes if the block ends with an exception."""
    staged, descriptor = _claim(place, folder=folder)
    try:
        yield staged, descriptor
    except BaseException:
        if _is_open_as(staged, descriptor):
            with contextlib.suppress(OSError):
                _remove(staged)
        raise
    finally:
        os.close(descriptor)


def _claim(place: Path, *, folder: bool) -> tuple[Path, int]:
    """Make the staged file or folder and lock it. Raises OutputError if a live run has it."""
    staged = _beside(place, "tmp")
    for _ in range(100):
        try:
            descriptor = _make(staged, folder=folder)
        except FileExistsError:
            _remove_leftover(staged, place)
            continue
        if descriptor is None:
            continue
        if _lock(descriptor) is not False and _is_open_as(staged, descriptor):
            return staged, descriptor
        os.close(descriptor)  # another run took it for a leftover before it was locked
    raise _busy(place)


def _make(staged: Path, *, folder: bool) -> int | None:
    """Make and open the staged file or folder; None if another run removed it in between."""
    if not folder:
        return os.open(staged, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    staged.mkdir()
    try:
        return os.open(staged, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        staged.rmdir()
        raise


def _remove_leftover(staged: Path, place: Path) -> None:
    """Remove what a killed run left; a live one holds its lock."""
    try:
        descriptor = _open_leftover(staged)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(
            f"{shown_path(place)} cannot be written: {shown_path(staged)} is in the way "
            f"({error.strerror})",
            hint="remove it",
        ) from error
    try:
        taken = _lock(descriptor)
        if taken is False:
            raise _busy(place)
        if taken is None:
            raise OutputError(
                f"{shown_path(place)}: another run may be writing it, on a file system that "
                "cannot tell",
                hint=f"if there is none, remove {shown_path(staged)}",
            )
        if _is_open_as(staged, descriptor):
            _remove(staged)
    finally:
        os.close(descriptor)


def _open_leftover(staged: Path) -> int:
    no_links = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(staged, os.O_RDWR | no_links)  # NFS locks only what can be written
    except IsADirectoryError:
        return os.open(staged, os.O_RDONLY | no_links)


def _busy(place: Path) -> OutputError:
    return OutputError(
        f"{shown_path(place)} is being written by another run",
        hint="wait for it to end, or write to another place",
    )


def _beside(place: Path, suffix: str) -> Path:
    """The name, in the target's folder, of what is not, or no longer, the target."""
    raw = os.fsencode(place.name)
    name = place.name if len(raw) <= _MAX_NAME else hashlib.sha256(raw).hexdigest()
    return place.with_name(f".{name}.moma.{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether a name still stands for what was opened."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _check_ours(target: Path, staged: Path, descriptor: int) -> None:
    if not _is_open_as(staged, descriptor):
        raise OutputError(
            f"{shown_path(target)} cannot be written: {shown_path(staged)} was taken away",
            hint="let no other program remove or replace it during a run",
        )


def _lock(descriptor: int) -> bool | None:
    """Take the lock that says "alive": False if another run has it, None if there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
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


def _install_folder(staged: Path, place: Path) -> None:
    """Give a complete folder its name, and remove the one that had it."""
    try:
        old = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        staged.rename(place)
        return
    try:
        _lock(old)  # under the staged name it must not be taken for a leftover
        if _exchange(staged, place):
            shutil.rmtree(staged, ignore_errors=True)
        else:
            _replace_in_steps(staged, place)
    finally:
        os.close(old)


def _replace_in_steps(staged: Path, place: Path) -> None:
    """Where two folders cannot be exchanged: set the old one aside, then remove it.

    A run killed between the two renames leaves it aside; the next run brings it back.
    """
    aside = _beside(place, "old")
    place.rename(aside)
    try:
        staged.rename(place)
    except BaseException:
        aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _bring_back(place: Path) -> None:
    aside = _beside(place, "old")
    if not aside.is_dir():
        return
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.rename(place)


def _exchange(staged: Path, place: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if sys.platform == "win32":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    one, two = os.fsencode(staged), os.fsencode(place)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, one, _AT_FDCWD, two, _RENAME_EXCHANGE)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(one, two, _RENAME_SWAP)
    else:
        return False
    if failed and ctypes.get_errno() not in _UNSUPPORTED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
    return not failed
