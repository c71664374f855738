"""An open input file that is hashed from the bytes that pass by anyway."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.digests import known_digest, remember_digest
from momacli.checkpoint.hashing import BackgroundHash
from momacli.checkpoint.source import Source

if TYPE_CHECKING:
    from momacli.checkpoint.company import Company
    from momacli.checkpoint.joint_hash import JointHash

_GAP = 1 << 26
"""Bytes left out between two reads that are hashed on the way, such as those of a head."""


class HashedFile:
    """One open file; what is read in order, after `start_hash`, need not be read again."""

    def __init__(self, path: Path):
        self.path = path
        self._source = Source(path)
        self._hash: BackgroundHash | JointHash = BackgroundHash()
        self._company: Company | None = None  # files that are hashed beside this one
        self._digest: str | None = None  # once it is known
        self._hashing = threading.Lock()  # two passes over a file may overlap

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: the same for two names of one file."""
        return self._source.identity

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._source.size

    @property
    def is_hashing(self) -> bool:
        """Whether what is read in order is hashed on the way."""
        return 0 < self._hash.length < self.size

    @property
    def is_joined(self) -> bool:
        """Whether it is hashed beside others."""
        return self._company is not None

    def expect(self, offset: int, length: int) -> None:
        """Tell the system what will be read soon, so that a slow disk is not waited for."""
        self._source.expect(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on, hashing them in another thread.

        Raises CheckpointError if the file was cut short or written to since it was opened.
        """
        self._source.read_into(buffer, offset)
        with self._hashing:
            self._hash.update(self._next_to_hash(buffer, offset))

    def read_here(self, buffer: memoryview, offset: int, passing: "Passing | None" = None) -> None:
        """Like `read_into`, hashing in this thread: for callers who have a thread a file.

        passing: takes what can be hashed beside other files, instead.
        """
        self._source.read_into(buffer, offset)
        if self.is_hashing:
            if passing is not None and self._company is not None:
                passing.add(self, self._company, buffer, offset)
                return
            with self._hashing:
                self._hash.update_here(self._next_to_hash(buffer, offset))

    def read(self, count: int, offset: int) -> bytes:
        """Read `count` bytes, or fewer where the file ends, and do not hash them."""
        return self._source.read(count, offset)

    def join(self, company: "Company", hash_in_it: "JointHash") -> None:
        """Be hashed beside others from now on; of this file nothing may have been hashed yet."""
        assert not self._hash.length
        self._hash.close()
        self._company, self._hash, self._hashing = company, hash_in_it, company.hashing

    def start_hash(self, first: int = 1) -> None:
        """Hash what is read from now on, so that `sha256` need not read it again.

        first: how many bytes at the start will not be read again.
        """
        if self._known() is None:
            self._hash_up_to(min(first, self.size))

    def is_new(self) -> bool:
        """Whether its SHA-256 is to be found, and nothing of it is hashed yet."""
        return self._known() is None and not self._hash.length

    def sha256(self) -> str:
        """SHA-256 of the whole file, reading only what has not passed by in order."""
        known = self._known()
        if known is not None:
            return known
        if self._company is not None:
            self._company.finish()
        digest = self.hash_anew()
        if self._source.is_unchanged():
            remember_digest(self._source.state, digest)
        return digest

    def take_digest(self, digest: str) -> None:
        """Take over the SHA-256 that another process found."""
        self._digest = digest

    def hash_anew(self) -> str:
        """Take the SHA-256 of every byte that is there, whatever was remembered of the file."""
        self._hash_up_to(self.size)
        self._digest = self._hash.hexdigest()
        return self._digest

    def _known(self) -> str | None:
        """Its SHA-256, where that is known without reading it."""
        if self._digest is None:
            self._digest = known_digest(self._source.state)
        return self._digest

    def _next_to_hash(self, buffer: memoryview, offset: int) -> memoryview:
        """What of the bytes read from `offset` on continues the hash: often all, or nothing."""
        if not self.continues(offset, len(buffer)):
            return memoryview(b"")
        self._hash_up_to(offset)
        return buffer[self._hash.length - offset :]

    def continues(self, offset: int, length: int) -> bool:
        """Whether a stretch of the file continues the hash, perhaps after a gap to be read."""
        position = self._hash.length
        return bool(position) and offset - _GAP <= position < offset + length

    def _hash_up_to(self, stop: int) -> None:
        while (position := self._hash.length) < stop:
            self._hash.update(self._source.read(min(1 << 20, stop - position), position))

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._company is not None:
            self._company.leave(self)
        self._hash.close()
        self._source.close()


class Passing:
    """What was read of several files and is to be hashed at once; until then it must not change."""

    def __init__(self) -> None:
        self._parts: dict[Company, dict[HashedFile, tuple[memoryview, int]]] = {}

    def add(self, file: HashedFile, company: "Company", buffer: memoryview, offset: int) -> None:
        """Add what was read of a file from `offset` on."""
        if file in self._parts.setdefault(company, {}):
            self.hash()
        self._parts.setdefault(company, {})[file] = (buffer, offset)

    def hash(self) -> None:
        """Hash all that was added."""
        parts, self._parts = self._parts, {}
        for company, passed in parts.items():
            company.hash(passed)
