"""Random choices that do not depend on how a tensor is split, on threads or on other tensors.

The n-th number of an expert and a tensor is a function of n and of a key, which is made of the
seed, the expert and the tensor.
"""

import hashlib

import numpy as np
from jaxtyping import Float

from momacli.compiled.loops import draw_uniform, keep_some


class Draws:
    """The random numbers for one expert and one tensor, one an entry."""

    def __init__(self, key: str):
        """key: whatever must be the same for the numbers to be the same."""
        digest = hashlib.sha256(key.encode()).digest()
        self._key = np.uint64(int.from_bytes(digest[:8], "little"))
        self._position = 0

    def thin(
        self, tau: Float[np.ndarray, " n"], keep: float, kept: Float[np.ndarray, " n"]
    ) -> None:
        """Copy each of the next n entries with probability `keep`; the others become 0."""
        if keep >= 1:
            kept[:] = tau
        else:
            limit = np.uint64(int(keep * 2**64))
            keep_some(np.ascontiguousarray(tau), self._key, self._position, limit, kept)
        self._position += len(tau)

    def uniform(self, count: int) -> Float[np.ndarray, " n"]:
        """Draw one float32 number from [0, 1) for each of the next `count` entries."""
        numbers = np.empty(count, dtype=np.float32)
        draw_uniform(self._key, self._position, numbers)
        self._position += count
        return numbers
