"""SHA-256 computed beside the work of the caller: it takes longer than reading does."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

_PENDING = 4
_LARGEST = 1 << 24
"""At most this many blocks of at most this many bytes are copied for the other thread."""


class BackgroundHash:
    """A SHA-256 of blocks given one after another; the thread is there once it is needed."""

    def __init__(self) -> None:
        self.length = 0  # bytes hashed, or about to be
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._pending: deque[Future[None]] = deque()

    def update(self, block: bytes | memoryview) -> None:
        """Add a block; it is copied where needed, so the caller may change it afterwards."""
        if not len(block):
            return
        if len(block) > _LARGEST:
            self.update_here(block)
            return
        self.length += len(block)
        self._wait(_PENDING - 1)
        self._pending.append(self._thread.submit(self._digest.update, bytes(block)))

    def update_here(self, block: bytes | memoryview) -> None:
        """Add a block in the caller's own thread, without a copy."""
        self.length += len(block)
        self._wait(0)
        self._digest.update(block)

    def hexdigest(self) -> str:
        """Digest of all blocks so far."""
        self._wait(0)
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread; blocks that still wait are forgotten."""
        self._thread.shutdown(cancel_futures=True)

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()
