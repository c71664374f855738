"""An open input file that is hashed from the bytes that pass by anyway."""

import threading
from pathlib import Path

from momacli.checkpoint.digests import known_digest, remember_digest
from momacli.checkpoint.hashing import BackgroundHash
from momacli.checkpoint.source import Source

_GAP = 1 << 26
"""Bytes left out between two reads that are hashed on the way, such as those of a head."""


class HashedFile:
    """One open file; what is read in order, after `start_hash`, need not be read again."""

    def __init__(self, path: Path):
        self.path = path
        self._source = Source(path)
        self._hash = BackgroundHash()
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

    def read_here(self, buffer: memoryview, offset: int) -> None:
        """Like `read_into`, hashing in this thread: for callers who have a thread a file."""
        self._source.read_into(buffer, offset)
        if self.is_hashing:
            with self._hashing:
                self._hash.update_here(self._next_to_hash(buffer, offset))

    def start_hash(self, first: int = 1) -> None:
        """Hash what is read from now on, so that `sha256` need not read it again.

        first: how many bytes at the start will not be read again.
        """
        if self._digest is None:
            self._digest = known_digest(self._source.state)
        if self._digest is None:
            self._hash_up_to(min(first, self.size))

    def sha256(self) -> str:
        """SHA-256 of the whole file, reading only what has not passed by in order."""
        if self._digest is None:
            self._digest = known_digest(self._source.state)
        if self._digest is None:
            self._hash_up_to(self.size)
            self._digest = self._hash.hexdigest()
            if self._source.is_unchanged():
                remember_digest(self._source.state, self._digest)
        return self._digest

    def take_digest(self, digest: str) -> None:
        """Take over the SHA-256 that another process found."""
        self._digest = digest

    def hash_anew(self) -> None:
        """Take the SHA-256 of every byte that is there, whatever was remembered of the file."""
        self._hash_up_to(self.size)
        self._digest = self._hash.hexdigest()

    def _next_to_hash(self, buffer: memoryview, offset: int) -> memoryview:
        """What of the bytes read from `offset` on continues the hash: often all, or nothing."""
        position = self._hash.length
        if not position or not offset - _GAP <= position < offset + len(buffer):
            return memoryview(b"")
        self._hash_up_to(offset)
        return buffer[self._hash.length - offset :]

    def _hash_up_to(self, stop: int) -> None:
        while (position := self._hash.length) < stop:
            self._hash.update(self._source.read(min(1 << 20, stop - position), position))

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._hash.close()
        self._source.close()
