"""SHA-256 digests of input files, remembered from one run to the next.

Hashing takes longer than merging: about a second of processor time per GB, or half of that
where eight files are hashed side by side. A digest is known by the file's device, inode, size
and the nanoseconds of its last modification and last change of status; the latter no program
but the system's own clock can set. So a file that was written to, replaced or restored is
hashed again. What was written within the last seconds is not remembered, because two writes
within one tick of the clock look alike.

MOMA_DIGESTS names the folder to remember in, by default moma/sha256 in the user's cache folder;
"off" remembers nothing.
"""

import contextlib
import os
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path

_SETTLED = 2.0
"""Seconds since the last write after which the next one will show in the times."""


@dataclass(frozen=True)
class FileState:
    """What tells one content of one file from any other."""

    device: int
    inode: int
    size: int
    modified: int  # ns
    changed: int  # ns; of the status, which includes the content

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """Take it from what the system says of a file."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


def known_digest(state: FileState) -> str | None:
    """The SHA-256 remembered of exactly this state, if any."""
    place = _place(state)
    if place is None:
        return None
    try:
        words = place.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    if words[:-1] != _words(state) or len(words[-1]) != 64 or not set(words[-1]) <= _HEX:
        return None
    return words[-1]


def remember_digest(state: FileState, digest: str) -> None:
    """Remember a digest; to fail to is no harm, it is only computed again."""
    place = _place(state)
    if place is None or time.time() - max(state.changed, state.modified) / 1e9 < _SETTLED:
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = place.with_name(f"{place.name}.{os.getpid()}")
        staged.write_text(" ".join([*_words(state), digest]), encoding="ascii")
        staged.replace(place)


_HEX = set("0123456789abcdef")


def _words(state: FileState) -> list[str]:
    return [str(item) for item in astuple(state)]


def _place(state: FileState) -> Path | None:
    """Where a file's digest is remembered; one place per file, so that the folder stays small."""
    chosen = os.environ.get("MOMA_DIGESTS")
    if chosen == "off" or sys.platform == "win32":  # where no time tells of every change
        return None
    try:
        folder = Path(chosen) if chosen else cache_folder() / "sha256"
    except RuntimeError:
        return None
    return folder / f"{state.device:x}-{state.inode:x}"


def cache_folder() -> Path:
    """What moma keeps of its own for one user. Raises RuntimeError for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "moma"
