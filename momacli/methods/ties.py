"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708): trim, elect sign, disjoint merge.

1. tau^_t = tau_t where |tau_t| is among the largest `density` of its vector, else 0.
2. gamma = sign(sum_t tau^_t); where the sum is zero, the majority sign of all the others
   (the authors' code; the paper does not say).
3. tau = mean (or sum) over the tau^_t whose sign is gamma.

The vector is the whole model by default, as in the paper; PEFT and mergekit trim each tensor
by itself (scope "tensor"). The authors' code keeps one entry more than floor(density * d).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.methods._selection import Stacks, largest_magnitudes

ELEMENTWISE = True


@dataclass(frozen=True)
class TiesStatistic:
    """What the merge of one entry must know of the whole vector."""

    thresholds: Float[Tensor, " T"]  # smallest magnitude kept, per expert
    majority: float  # +1 or -1: the sign elected where the sum is zero


def first_pass(
    stacks: Stacks,
    *,
    density: float = 0.2,
    weights: Float[Tensor, " T"] | None = None,
) -> TiesStatistic:
    """Find the thresholds and the majority sign of the whole vector, block by block."""
    thresholds = largest_magnitudes(stacks, density=density)
    signs = 0
    for block in stacks():
        trimmed = _weighted(_trim(block.float(), thresholds), weights)
        signs += int(trimmed.sum(dim=0).sign().sum(dtype=torch.float64))
    return TiesStatistic(thresholds, 1.0 if signs >= 0 else -1.0)


def ties(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    density: float = 0.2,
    lam: float = 1.0,
    weights: Float[Tensor, " T"] | None = None,
    aggregate: Literal["mean", "sum", "weighted-mean"] = "mean",
    statistic: TiesStatistic | None = None,
) -> Float[Tensor, "*shape"]:
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
        flat = task_vectors.reshape(task_vectors.shape[0], -1)
        statistic = first_pass(lambda: [flat], density=density, weights=weights)
    trimmed = _weighted(_trim(task_vectors, statistic.thresholds), weights)
    gamma = trimmed.sum(dim=0).sign()
    gamma = gamma + statistic.majority * (1 - gamma.abs())  # the majority's where it is 0
    agreeing = (trimmed * gamma).clamp_(min=0)  # magnitudes of the entries with that sign
    total = agreeing.sum(dim=0) * gamma
    if aggregate == "mean":
        total = total / agreeing.sign().sum(dim=0).clamp_(min=1)
    elif aggregate == "weighted-mean":
        shares = _weighted(agreeing.sign(), weights).sum(dim=0)
        total = total / torch.where(shares == 0, 1.0, shares)
    return lam * total


def _trim(task_vectors: Tensor, thresholds: Tensor) -> Tensor:
    """Set to 0 what is below its threshold; hardshrink does so in a quarter of where's time."""
    trimmed = torch.empty_like(task_vectors)
    dropped = torch.nextafter(
        thresholds.to(task_vectors), thresholds.new_tensor(-torch.inf).to(task_vectors)
    )
    for tau, largest, out in zip(task_vectors, dropped.tolist(), trimmed, strict=True):
        torch.hardshrink(tau, largest, out=out)
    return trimmed


def _weighted(task_vectors: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return task_vectors
    return weights.to(task_vectors.dtype).reshape(-1, *[1] * (task_vectors.ndim - 1)) * task_vectors
