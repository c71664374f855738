"""Random choices that do not depend on how a tensor is split, on threads or on other tensors.

The n-th number of an expert and a tensor is a function of n and of a key, which is made of the
seed, the expert and the tensor.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from momacli.compiled.loops import draw_uniform, keep_some
from momacli.shapes import Float


class Draws:
    """The random numbers for one expert and one tensor, one an entry."""

    def __init__(self, key: str):
        """key: whatever must be the same for the numbers to be the same."""
        digest = hashlib.sha256(key.encode()).digest()
        self.key = np.uint64(int.from_bytes(digest[:8], "little"))
        self.position = 0

    def uniform(self, count: int) -> Float[np.ndarray, " n"]:
        """Draw one float32 number from [0, 1) for each of the next `count` entries."""
        numbers = np.empty(count, dtype=np.float32)
        draw_uniform(self.key, self.position, numbers)
        self.position += count
        return numbers


def thinned(
    task_vectors: Float[np.ndarray, "T n"], draws: Sequence[Draws], keep: float
) -> Float[np.ndarray, "T n"]:
    """Keep each of the next n entries of every expert with probability `keep`; others become 0."""
    kept: np.ndarray = np.empty(task_vectors.shape, dtype=task_vectors.dtype)
    if keep >= 1:
        kept[:] = task_vectors
    else:
        keys = np.array([drawn.key for drawn in draws], dtype=np.uint64)
        positions = np.array([drawn.position for drawn in draws])
        limit = np.uint64(int(keep * 2**64))
        keep_some(np.ascontiguousarray(task_vectors), keys, positions, limit, kept)
    for drawn in draws:
        drawn.position += task_vectors.shape[1]
    return kept
