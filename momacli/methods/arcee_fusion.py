"""Arcee Fusion (Arcee AI 2025, mergekit): keep only the important changes of one expert.

importance = |tau| * KL(softmax(theta_1) || softmax(theta_0)), the softmax over the last
dimension; tau where importance >= median + 1.5 * (Q3 - Q1), else 0. There is no paper.

The divergences of fine-tuning are about 1e-8, less than the rounding errors of float32 add up
to, so they are computed in float64, without mergekit's 1e-8 in the logarithm. Quantiles are
exact, where mergekit samples a million entries of a larger tensor at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts, TensorParts
from momacli.methods._ranks import entries_of_rank
from momacli.methods._selection import magnitudes_of_ranks
from momacli.shapes import Float

ELEMENTWISE = False
MAX_EXPERTS = 1

_PIECE = 1 << 14  # entries that are held in float64 at a time, in the cache


_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Importance:
    """What decides on one entry, besides itself and its row."""

    largest: float  # of the rows' divergences
    least: float  # that is kept


@on_arrays
def arcee_fusion(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    statistic: Importance | None = None,
) -> Float[np.ndarray, "*shape"]:
    """Return the task vector of the only expert where its importance is an outlier.

    statistic: of the whole tensor, where these are but some of its rows.

    Raises UsageError for more than one expert.
    """
    if len(task_vectors) > MAX_EXPERTS:
        raise UsageError(
            f"arcee-fusion fuses one expert into the base, found {len(task_vectors)}",
            hint="merge the experts first, then fuse the result into the base",
        )
    tau = task_vectors[0]
    if tau.size == 0:
        return np.array(tau)
    n = tau.shape[-1] if tau.ndim else 1
    rows = tau.reshape(-1, n)
    divergences = _divergences(base.reshape(-1, n), rows)
    if statistic is None:
        largest = divergences.max()
        importance = _importance(rows, divergences, largest)
        found = [_quantile(importance, q) for q in _QUARTILES]
        statistic = Importance(largest, _least(found))
    else:
        importance = _importance(rows, divergences, statistic.largest)
    important = importance >= rows.dtype.type(statistic.least)
    kept: np.ndarray = np.where(important, rows, rows.dtype.type(0)).reshape(tau.shape)
    return kept


def in_parts() -> Parts:
    """Return how parts of a tensor are merged: in rows, which have divergences of their own."""
    return Parts(_measure, rows=True)


def _measure(tensor: TensorParts) -> dict[str, Any]:
    """What `arcee_fusion` finds out of a whole tensor by itself."""
    width = tensor.shape[-1]

    def rows() -> Iterator[tuple[Float[np.ndarray, "rows n"], Float[np.ndarray, "rows n"]]]:
        for _, block in tensor.blocks():
            yield block.theta_0.reshape(-1, width), block.taus[0].reshape(-1, width)

    divergences = [_divergences(theta_0, tau) for theta_0, tau in rows()]
    largest = max(part.max() for part in divergences)

    def importance() -> Iterator[Float[np.ndarray, "1 n"]]:
        for (_, tau), part in zip(rows(), divergences, strict=True):
            yield _importance(tau, part, largest).reshape(1, -1)

    found = magnitudes_of_ranks(
        importance,
        lambda n: [n + 1 - _rank(q, n) for q in _QUARTILES],
        [1 - q for q in _QUARTILES],
    )
    return {"statistic": Importance(largest, _least([float(one) for one in found[:, 0]]))}


def _least(quartiles: list[float]) -> float:
    """From which importance on a change is an outlier."""
    q1, median, q3 = quartiles
    return median + 1.5 * (q3 - q1)


def _importance(
    tau: Float[np.ndarray, "rows n"], divergences: Float[np.ndarray, " rows"], largest: float
) -> Float[np.ndarray, "rows n"]:
    relative = divergences / max(largest, np.finfo(np.float64).tiny)
    importance: np.ndarray = np.abs(tau)
    importance *= relative[:, None].astype(tau.dtype)
    return importance


def _divergences(
    theta_0: Float[np.ndarray, "rows n"], tau: Float[np.ndarray, "rows n"]
) -> Float[np.ndarray, " rows"]:
    """KL(softmax(theta_0 + tau) || softmax(theta_0)) of each row.

    As p_i / q_i is exp(tau_i) times a constant, it is sum_i p_i tau_i - log of the ratio of the
    sums of exponentials.
    """
    count, n = tau.shape
    divergences = np.empty(count)
    several = max(1, _PIECE // n)
    for start in range(0, count, several):
        x_0 = theta_0[start : start + several].astype(np.float64)
        change = tau[start : start + several].astype(np.float64)
        x_1 = x_0 + change
        highest_0, highest_1 = _exponentiate(x_0), _exponentiate(x_1)
        sum_0, sum_1 = x_0.sum(axis=1), x_1.sum(axis=1)
        mean = np.einsum("rn,rn->r", x_1, change) / sum_1
        ratio = highest_1 - highest_0 + np.log(sum_1 / sum_0)
        divergences[start : start + several] = mean - ratio
    np.maximum(divergences, 0, out=divergences)
    return divergences


def _exponentiate(x: Float[np.ndarray, "rows n"]) -> Float[np.ndarray, " rows"]:
    """Replace x by exp(x - max of its row), and return that."""
    highest: np.ndarray = x.max(axis=1)
    x -= highest[:, None]
    np.exp(x, out=x)
    return highest


def _quantile(values: Float[np.ndarray, "rows n"], q: float) -> float:
    """The entry of this share of the ranks: no interpolation."""
    return float(entries_of_rank(values.reshape(1, -1), _rank(q, values.size))[0])


def _rank(q: float, n: int) -> int:
    """The rank floor(q (n - 1)), from 1, of a share of n entries."""
    return 1 + int(q * (n - 1))
