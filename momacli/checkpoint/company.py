"""Files that are read at the same time, and hashed side by side."""

import threading
from collections.abc import Iterable, Mapping

from momacli.checkpoint.hashed_file import HashedFile
from momacli.checkpoint.joint_hash import JointHash, update_together

_STEP = 1 << 20
"""Bytes of each file that are read at a time only to be hashed."""


class Company:
    """Files and the hash of each; it is the same for all whether they are read in step."""

    def __init__(self, files: Iterable[HashedFile]):
        """Let the files be hashed here, of which nothing may have been hashed yet."""
        self.hashing = threading.Lock()
        self._hashes = {file: JointHash() for file in files}
        for file, own in self._hashes.items():
            file.join(self, own)

    def hash(self, passed: Mapping[HashedFile, tuple[memoryview, int]]) -> None:
        """Hash what was read of files from some place on, and before it what lies between."""
        with self.hashing:
            parts = {
                file: (buffer, offset)
                for file, (buffer, offset) in passed.items()
                if file.continues(offset, len(buffer))
            }
            self._read_up_to({file: offset for file, (_, offset) in parts.items()})
            update_together(
                [
                    (own := self._hashes[file], buffer[own.length - offset :])
                    for file, (buffer, offset) in parts.items()
                ]
            )

    def finish(self) -> None:
        """Read and hash what has not passed by of any of them: side by side, too."""
        with self.hashing:
            self._read_up_to({file: file.size for file in self._hashes})

    def leave(self, file: HashedFile) -> None:
        """Leave a file out from now on, which is closed."""
        self._hashes.pop(file, None)

    def _read_up_to(self, stops: Mapping[HashedFile, int]) -> None:
        while True:
            parts = [
                (own, file.read(min(_STEP, stop - own.length), own.length))
                for file, stop in stops.items()
                if (own := self._hashes[file]).length < stop
            ]
            if not parts:
                return
            update_together(parts)
