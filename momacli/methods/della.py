"""DELLA (Deep et al. 2024, arXiv:2406.11617): drop small entries more often, elect, fuse.

1. MagPrune: within each row, an entry of rank r among n by magnitude (0 the smallest) is kept
   with probability q = density - epsilon + 2 epsilon r / (n - 1), that is 1 - p of the paper,
   and divided by q.
2. Elect the sign of the sum; 3. average the survivors that have it, times lambda.

The paper's window is 2 * epsilon; epsilon is mergekit's. mergekit rescales by the sum of
magnitudes instead of 1 / q (option `rescale`), ranks a convolution along its second dimension
only, and fails on rows of a single entry; here such an entry is kept with q = density.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from momacli.compiled.drawing import keep_by_rank
from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts
from momacli.methods._random_mask import Draws
from momacli.methods._rows import as_rows
from momacli.methods.ties import TiesStatistic, ties
from momacli.shapes import Float, UInt

ELEMENTWISE = False

_PIECE = 1 << 14  # entries that are ranked at a time, in the cache

_PLACE = np.uint64(0xFFFFFFFF)  # the bits of a key that say where the entry is


@on_arrays
def della(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    draws: Sequence[Draws],
    density: float = 0.7,
    epsilon: float = 0.07,
    lam: float = 1.1,
    per: Literal["tensor", "row"] = "row",
    rescale: Literal["probability", "l1"] = "probability",
    weights: Float[np.ndarray, " T"] | None = None,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times the sign-consistent mean of the pruned task vectors.

    density: mean share of entries kept; 0.7 is the drop rate 0.3 of the authors' example.
    epsilon: half the width of the window of probabilities, which must stay within (0, 1];
        0.07 is the window 0.14 of the authors' example. mergekit's is 0.15; 0 is DARE.
    lam: the paper's lambda; 1.1 is the authors' example.
    per: what entries are ranked within; "row" (an output unit) is the paper's best.
    rescale: "probability" divides each survivor by its own q (paper); "l1" gives each task
        vector back its sum of magnitudes (mergekit).
    weights: one factor per expert after pruning, default 1 each.
    """
    if not 0 < density - epsilon <= density + epsilon <= 1:
        raise UsageError(
            f"density and epsilon: expected both density - epsilon and density + epsilon "
            f"above 0 and at most 1, found {density} and {epsilon}",
            hint="lower epsilon, or move density towards 0.5",
        )
    rows = as_rows(task_vectors, per)
    kept = np.empty_like(rows, order="C")
    for tau, drawn, out in zip(rows, draws, kept, strict=True):
        _magprune(tau, drawn, _probabilities(tau, density, epsilon), rescale == "probability", out)
    if rescale == "l1":
        for tau, out in zip(rows, kept, strict=True):
            before, after = (np.abs(x).sum(dtype=np.float64) for x in (tau, out))
            out *= out.dtype.type(before / after if after > 0 else 1.0)
    untrimmed = TiesStatistic(np.zeros(len(kept)))
    return ties(kept.reshape(task_vectors.shape), lam=lam, weights=weights, statistic=untrimmed)


def in_parts(
    *,
    per: Literal["tensor", "row"] = "row",
    rescale: Literal["probability", "l1"] = "probability",
    **_options: Any,
) -> Parts | None:
    """Return how parts of a tensor are merged: rows by themselves, if nothing else decides."""
    return Parts(rows=True) if per == "row" and rescale == "probability" else None


def _probabilities(
    tau: Float[np.ndarray, "rows n"], density: float, epsilon: float
) -> Float[np.ndarray, " n"]:
    """The q of each rank, from the smallest magnitude on."""
    last = tau.shape[1] - 1
    offsets = np.arange(-last, last + 1, 2) if last > 0 else np.zeros(last + 1)
    q: np.ndarray = offsets.astype(np.float32) / np.float32(max(1, last))
    q *= np.float32(epsilon)
    q += np.float32(density)
    return q


def _magprune(
    tau: Float[np.ndarray, "rows n"],
    drawn: Draws,
    q: Float[np.ndarray, " n"],
    divide: bool,
    out: Float[np.ndarray, "rows n"],
) -> None:
    count, n = tau.shape
    several = max(1, _PIECE // max(1, n))
    for start in range(0, count, several):
        values = np.ascontiguousarray(tau[start : start + several])
        kept = out[start : start + several]
        keep_by_rank(values, _ascending(values), drawn.key, drawn.position, q, divide, kept)
        drawn.position += values.size


def _ascending(values: Float[np.ndarray, "rows n"]) -> UInt[np.ndarray, "rows n"]:
    """Places of each row's entries by magnitude, those of equal ones as they come.

    Magnitudes of float32 numbers order like their bit patterns; with the places in the lower
    half, one sort of integers does what a stable sort of pairs would.
    """
    if values.dtype != np.float32:
        order: np.ndarray = np.argsort(np.abs(values), axis=1, kind="stable").astype(np.uint64)
        return order
    keys: np.ndarray = (values.view(np.uint32) & np.uint32(0x7FFFFFFF)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(values.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= _PLACE
    return keys
