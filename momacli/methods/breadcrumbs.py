"""Model Breadcrumbs (Davari and Belilovsky 2024, arXiv:2312.06795): drop both tails, then add.

tau = alpha * sum_t m_t * tau_t, where m_t keeps the entries of a layer whose |tau_t| lies from
its beta to its gamma percentile: neither the negligible many nor the few outliers.

In the authors' code gamma is the share of outliers removed and beta the share kept below them,
within each row (`per`): its start values .006, .15 and alpha .2 are gamma .994, beta .844 here.
mergekit's density d and gamma g are beta 1 - g - d and gamma 1 - g. Both round the number of
entries kept down, and so empty rows or tensors that are too small; here one always remains.
"""

import math
from functools import partial
from typing import Any, Literal

import numpy as np

from momacli.compiled.sums import add_between
from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts, TensorParts
from momacli.methods._ranks import entries_of_ranks
from momacli.methods._rows import as_rows
from momacli.methods._selection import magnitudes_of_ranks
from momacli.shapes import Float

ELEMENTWISE = False


@on_arrays
def breadcrumbs(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    beta: float = 0.9,
    gamma: float = 0.99,
    lam: float = 0.3,
    per: Literal["tensor", "row"] = "tensor",
    weights: Float[np.ndarray, " T"] | None = None,
    statistic: Float[np.ndarray, "2 T"] | None = None,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times the (weighted) sum of the task vectors without their tails.

    beta: percentile below which entries are dropped, in [0, 1); 0.9 is the paper's.
    gamma: percentile above which entries are dropped, above beta; 0.99 is the paper's.
    lam: the paper's alpha; 0.3 is the paper's.
    per: what percentiles are taken of; "tensor" is the paper's layer, "row" (an output unit)
        is close to the authors' code, which takes the last dimension of a convolution too.
    weights: one per expert, default 1 each.
    statistic: the smallest and the largest magnitude kept of each expert's tensor, where these are
        but a part of it.
    """
    if not 0 <= beta < gamma <= 1:
        raise UsageError(
            f"beta and gamma: expected 0 <= beta < gamma <= 1, found {beta} and {gamma}",
            hint="both are percentiles: 0.9 and 0.99 keep the entries between them",
        )
    if task_vectors.size == 0:
        nothing: np.ndarray = task_vectors.sum(axis=0)
        return nothing
    rows: np.ndarray = np.ascontiguousarray(as_rows(task_vectors, per))
    if statistic is None:
        kept = _ranks_kept(rows.shape[-1], beta, gamma)
        bounds = np.stack([entries_of_ranks(np.abs(tau), kept) for tau in rows], axis=1)
    else:
        bounds = statistic[:, :, None]
    lows, highs = np.ascontiguousarray(bounds)
    factors = np.ones(len(rows)) if weights is None else weights
    merged: np.ndarray = np.empty_like(rows[0])
    add_between(rows, lows, highs, factors.astype(rows.dtype), float(lam), merged)
    shaped: np.ndarray = merged.reshape(task_vectors.shape[1:])
    return shaped


def in_parts(
    *,
    beta: float = 0.9,
    gamma: float = 0.99,
    per: Literal["tensor", "row"] = "tensor",
    **_options: Any,
) -> Parts:
    """Return how parts of a tensor are merged: rows by themselves where those are told apart."""
    return Parts(rows=True) if per == "row" else Parts(partial(_bounds, beta=beta, gamma=gamma))


def _bounds(tensor: TensorParts, *, beta: float, gamma: float) -> dict[str, Any]:
    def from_above(n: int) -> list[int]:
        return [n + 1 - rank for rank in _ranks_kept(n, beta, gamma)]

    return {"statistic": magnitudes_of_ranks(tensor, from_above, [1 - beta, 1 - gamma])}


def _ranks_kept(n: int, beta: float, gamma: float) -> tuple[int, int]:
    """The first and last rank kept of n by magnitude, from 1: never none.

    floor(beta n) are dropped at the bottom and floor((1 - gamma) n) at the top; rounding to
    six digits first makes 0.56 * 100 the 56 it is meant to be.
    """
    largest = math.ceil(round(gamma * n, 6))
    return min(math.floor(round(beta * n, 6)) + 1, largest), largest
