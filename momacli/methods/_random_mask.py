"""Random masks that do not depend on how a tensor is split, on threads or on other tensors.

Philox (Salmon et al. 2011) turns a key and a counter into random bits; the key here is the
seed, the expert and the tensor.
"""

import hashlib

import numpy as np
from jaxtyping import Bool, Float

_BATCH = 1 << 12
"""Numbers of 64 bits to draw at a time, at least."""


class Draws:
    """The random numbers for one expert and one tensor; each is used once, in order."""

    def __init__(self, key: str):
        """key: whatever must be the same for the numbers to be the same."""
        digest = hashlib.sha256(key.encode()).digest()
        first, second = (int.from_bytes(digest[a : a + 16], "little") for a in (0, 16))
        self._bits = np.random.Philox(key=first)
        self._undecided = np.random.Generator(np.random.Philox(key=second))
        self._bytes = np.empty(0, dtype=np.uint8)

    def mask(self, count: int, keep: float) -> Bool[np.ndarray, " n"]:
        """Draw `count` values that are true with probability `keep`.

        One byte decides, unless it is the one in 256 that leaves a fraction open.
        """
        drawn = self._next_bytes(count)
        whole = int(256 * keep)
        mask: np.ndarray = drawn < whole
        if whole < 256:
            open_places = np.flatnonzero(drawn == whole)
            further = self._undecided.random(len(open_places))
            mask[open_places] = further < 256 * keep - whole
        return mask

    def uniform(self, count: int) -> Float[np.ndarray, " n"]:
        """Draw `count` float32 numbers from [0, 1), multiples of 2^-24."""
        drawn = self._next_bytes(4 * count).view(np.uint32) >> np.uint32(8)
        numbers: np.ndarray = drawn * np.float32(2**-24)
        return numbers

    def _next_bytes(self, count: int) -> np.ndarray:
        """Bytes in order, whatever lengths they are asked for in."""
        missing = count - len(self._bytes)
        if missing > 0:
            words = self._bits.random_raw(max(_BATCH, -(-missing // 8)))
            fresh = words.astype("<u8", copy=False).view(np.uint8)
            self._bytes = np.concatenate([self._bytes, fresh]) if len(self._bytes) else fresh
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken
