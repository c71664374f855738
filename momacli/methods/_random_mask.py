"""Random choices that do not depend on how a tensor is split, on threads or on other tensors.

The n-th number of an expert and a tensor is a function of n and of a key, which is made of the
seed, the expert and the tensor.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from momacli.compiled.drawing import draw_uniform, keep_some
from momacli.compiled.sums import add_drawn
from momacli.methods._sums import OnePass
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
    keep_some(np.ascontiguousarray(task_vectors), *_numbers(draws), _last_kept(keep), kept)
    _pass_by(draws, task_vectors.shape[1])
    return kept


def added_to_base_thinned(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    draws: Sequence[Draws],
    keep: float,
    weights: Float[np.ndarray, " T"] | None,
    aggregate: Literal["all", "elected", "mean of elected"],
    lam: float,
) -> OnePass:
    """Return theta_0 + lam times a sum over what `thinned` leaves of w_t (theta_t - theta_0).

    aggregate: all of them; those whose sign is the sum's (positive where it is zero), or the
        mean of these. n must not be 1, as for `added_to_base`.
    """
    factors = np.ones(len(thetas)) if weights is None else weights
    merged: np.ndarray = np.empty_like(theta_0)
    changed = add_drawn(
        theta_0,
        thetas,
        factors.astype(theta_0.dtype),
        *_numbers(draws),
        _last_kept(keep),
        ("all", "elected", "mean of elected").index(aggregate),
        float(lam),
        merged,
    )
    if changed < 0:
        return merged, None
    _pass_by(draws, len(theta_0))
    return merged, changed


def _numbers(draws: Sequence[Draws]) -> tuple[np.ndarray, np.ndarray]:
    """What each expert's numbers are made of, and where they begin."""
    keys = np.array([drawn.key for drawn in draws], dtype=np.uint64)
    return keys, np.array([drawn.position for drawn in draws])


def _last_kept(keep: float) -> np.uint64:
    """The largest number of 64 bits that keeps an entry."""
    last: np.uint64 = np.uint64(int(keep * 2**64) - 1)
    return last


def _pass_by(draws: Sequence[Draws], count: int) -> None:
    for drawn in draws:
        drawn.position += count
