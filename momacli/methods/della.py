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
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momacli.errors import UsageError
from momacli.methods._random_mask import Draws
from momacli.methods._rows import as_rows
from momacli.methods.ties import TiesStatistic, ties

ELEMENTWISE = False


def della(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    draws: Sequence[Draws],
    density: float = 0.7,
    epsilon: float = 0.07,
    lam: float = 1.1,
    per: Literal["tensor", "row"] = "row",
    rescale: Literal["probability", "l1"] = "probability",
    weights: Float[Tensor, " T"] | None = None,
) -> Float[Tensor, "*shape"]:
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
    kept = torch.stack(
        [
            _magprune(tau, drawn, density, epsilon, rescale)
            for tau, drawn in zip(as_rows(task_vectors, per), draws, strict=True)
        ]
    )
    untrimmed = TiesStatistic(np.zeros(len(kept)))
    return ties(kept.reshape(task_vectors.shape), lam=lam, weights=weights, statistic=untrimmed)


def _magprune(
    tau: Float[Tensor, "rows n"],
    drawn: Draws,
    density: float,
    epsilon: float,
    rescale: Literal["probability", "l1"],
) -> Float[Tensor, "rows n"]:
    last = tau.shape[-1] - 1
    rank = tau.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    q = density + epsilon * ((2 * rank - last) / max(1, last))
    uniform = torch.from_numpy(drawn.uniform(tau.numel())).reshape(tau.shape).to(tau.device)
    kept = torch.where(uniform < q, tau, 0.0)
    if rescale == "probability":
        return kept / q
    before, after = (x.abs().sum(dtype=torch.float64) for x in (tau, kept))
    return kept * torch.where(after > 0, before / after, 1.0).to(tau.dtype)
