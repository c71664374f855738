"""Model Breadcrumbs (Davari and Belilovsky 2024, arXiv:2312.06795): drop both tails, then add.

tau = alpha * sum_t m_t * tau_t, where m_t keeps the entries of a layer whose |tau_t| lies from
its beta to its gamma percentile: neither the negligible many nor the few outliers.

In the authors' code gamma is the share of outliers removed and beta the share kept below them,
within each row (`per`): its start values .006, .15 and alpha .2 are gamma .994, beta .844 here.
mergekit's density d and gamma g are beta 1 - g - d and gamma 1 - g. Both round the number of
entries kept down, and so empty rows or tensors that are too small; here one always remains.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momacli.errors import UsageError
from momacli.methods._rows import as_rows
from momacli.methods.task_arithmetic import task_arithmetic

ELEMENTWISE = False


def breadcrumbs(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    beta: float = 0.9,
    gamma: float = 0.99,
    lam: float = 0.3,
    per: Literal["tensor", "row"] = "tensor",
    weights: Float[Tensor, " T"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the (weighted) sum of the task vectors without their tails.

    beta: percentile below which entries are dropped, in [0, 1); 0.9 is the paper's.
    gamma: percentile above which entries are dropped, above beta; 0.99 is the paper's.
    lam: the paper's alpha; 0.3 is the paper's.
    per: what percentiles are taken of; "tensor" is the paper's layer, "row" (an output unit)
        is close to the authors' code, which takes the last dimension of a convolution too.
    weights: one per expert, default 1 each.
    """
    if not 0 <= beta < gamma <= 1:
        raise UsageError(
            f"beta and gamma: expected 0 <= beta < gamma <= 1, found {beta} and {gamma}",
            hint="both are percentiles: 0.9 and 0.99 keep the entries between them",
        )
    if task_vectors.numel() == 0:
        return task_vectors.sum(dim=0)
    rows = as_rows(task_vectors, per)
    size = rows.abs()
    smallest, largest = _ranks_kept(rows.shape[-1], beta, gamma)
    low, high = _entries_of_rank(size, smallest, largest)
    crumbs = rows * ((size >= low) & (size <= high)).to(rows.dtype)
    return task_arithmetic(crumbs.reshape(task_vectors.shape), weights=weights, lam=lam)


def _entries_of_rank(
    size: Float[Tensor, "*rows n"], *ranks: int
) -> tuple[Float[Tensor, "*rows 1"], ...]:
    """The entries of these ranks from below, from 1; NumPy finds both at once, and faster."""
    places = [rank - 1 for rank in ranks]
    parted = torch.from_numpy(np.partition(size.cpu().numpy(), places, axis=-1))
    return tuple(parted[..., place : place + 1].to(size.device) for place in places)


def _ranks_kept(n: int, beta: float, gamma: float) -> tuple[int, int]:
    """The first and last rank kept of n by magnitude, from 1: never none.

    floor(beta n) are dropped at the bottom and floor((1 - gamma) n) at the top; rounding to
    six digits first makes 0.56 * 100 the 56 it is meant to be.
    """
    largest = math.ceil(round(gamma * n, 6))
    return min(math.floor(round(beta * n, 6)) + 1, largest), largest
