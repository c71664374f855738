"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708): trim, elect sign, disjoint merge.

1. tau^_t = tau_t where |tau_t| is among the largest `density` of its vector, else 0.
2. gamma = sign(sum_t tau^_t); where the sum is zero, the majority sign of all the others
   (the authors' code; the paper does not say).
3. tau = mean (or sum) over the tau^_t whose sign is gamma.

The vector is the whole model by default, as in the paper; PEFT and mergekit trim each tensor
by itself (scope "tensor"). The authors' code keeps one entry more than floor(density * d).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from momacli.compiled.election import balance_of_signs, elect_and_merge
from momacli.methods._arrays import on_entries
from momacli.methods._selection import Stacks, arrays_of, largest_magnitudes
from momacli.methods._tally import Tally
from momacli.shapes import Float

ELEMENTWISE = True

_AGGREGATES = {"sum": 0, "mean": 1, "weighted-mean": 2}
"""How the compiled loop calls them."""


@dataclass(frozen=True)
class TiesStatistic:
    """What the merge of one entry must know of the whole vector."""

    thresholds: Float[np.ndarray, " T"]  # smallest magnitude kept, in float32, per expert
    tally: Tally = field(default_factory=Tally)  # of positive sums less negative ones

    @property
    def majority(self) -> int:
        """+1 or -1: the sign elected where entries cancel out. Nobody else has to ask."""
        return self.tally.sign


def first_pass(
    stacks: Stacks,
    *,
    density: float = 0.2,
    weights: Float[np.ndarray, " T"] | None = None,
) -> TiesStatistic:
    """Find the thresholds of the whole vector, block by block."""
    thresholds = largest_magnitudes(stacks, density=density)

    def balance() -> int:
        return sum(
            balance_of_signs(
                np.ascontiguousarray(block),
                least_kept(thresholds, block.dtype),
                _factors(block, weights),
            )
            for block in arrays_of(stacks)
        )

    return TiesStatistic(thresholds, Tally(balance))


def least_kept(thresholds: Float[np.ndarray, " T"], kind: np.dtype[Any]) -> np.ndarray:
    """Return the smallest numbers of a type [T] that are the thresholds once in float32."""
    least = thresholds.astype(kind)
    if kind == np.float64:
        below = np.nextafter(thresholds, np.float32(0)).astype(kind)
        middle = (below + least) / 2
        is_kept = middle.astype(np.float32) == thresholds
        least = np.where(is_kept, middle, np.nextafter(middle, np.inf))
    return least


@on_entries
def ties(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    density: float = 0.2,
    lam: float = 1.0,
    weights: Float[np.ndarray, " T"] | None = None,
    aggregate: Literal["mean", "sum", "weighted-mean"] = "mean",
    statistic: TiesStatistic | None = None,
) -> Float[np.ndarray, " n"]:
    """Return lam times the disjoint mean (or sum) of the trimmed task vectors.

    density: share of entries kept per expert; 0.2 is the paper's.
    lam: 1 is the paper's recommendation without validation data; the CLIP literature uses
        0.3 with `aggregate="sum"`.
    weights: one factor per expert after trimming, default 1 each.
    aggregate: "mean" divides by the number of entries that agree with the elected sign;
        "weighted-mean" by the sum of their weights (mergekit's normalize).
    statistic: of the whole model, from `first_pass`; without it this tensor stands alone.
    """
    if statistic is None:
        statistic = first_pass(lambda: [task_vectors], density=density, weights=weights)
    likely = statistic.tally.likely
    merged, cancelled, balance = _elected(task_vectors, statistic, weights, aggregate, likely)
    statistic.tally.add(balance)
    if cancelled and statistic.majority != likely:
        merged, _, _ = _elected(task_vectors, statistic, weights, aggregate, -likely)
    merged *= merged.dtype.type(lam)
    return merged


def _elected(
    task_vectors: Float[np.ndarray, "T n"],
    statistic: TiesStatistic,
    weights: Float[np.ndarray, " T"] | None,
    aggregate: str,
    majority: int,
) -> tuple[Float[np.ndarray, " n"], bool, int]:
    """Return the merge, whether it depends on the majority, and the balance of signs."""
    merged = np.empty_like(task_vectors, shape=task_vectors.shape[1:])
    cancelled, balance = elect_and_merge(
        np.ascontiguousarray(task_vectors),
        least_kept(statistic.thresholds, task_vectors.dtype),
        _factors(task_vectors, weights),
        majority,
        _AGGREGATES[aggregate],
        merged,
    )
    return merged, bool(cancelled), int(balance)


def _factors(
    task_vectors: Float[np.ndarray, "T n"], weights: Float[np.ndarray, " T"] | None
) -> Float[np.ndarray, " T"]:
    """One factor per expert, in the type of the task vectors."""
    factors = np.ones(len(task_vectors)) if weights is None else weights
    return factors.astype(task_vectors.dtype)
