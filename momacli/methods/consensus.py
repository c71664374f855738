"""Consensus merging (Wang et al. 2024, TALL-masks, arXiv:2405.07813): drop what few tasks use.

mask_t = |tau_t| > lambda_t |tau_mtl - tau_t|: where task t recognizes the multi-task vector
tau_mtl = sum_t tau_t as its own. Entries recognized by fewer than k tasks are dropped:
tau = lambda * [sum_t mask_t >= k] * tau_mtl.

The masks compare with the unscaled tau_mtl. The authors pick every lambda_t and lambda by
validation; without data one value serves all tasks.
"""

import torch
from torch import Tensor

from momacli.methods._tall_masks import MultiTask, Of, first_pass, recognized
from momacli.shapes import Float

ELEMENTWISE = True


def consensus(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    k: int = 2,
    mask_lam: float = 0.4,
    lam: float = 0.3,
    of: Of = "task_arithmetic",
    density: float = 0.2,
    statistic: MultiTask | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the entries of the multi-task vector that at least k tasks recognize.

    k: 2 is the paper's: it removes what no task (catastrophic) or one alone (selfish) uses;
        1 removes only the former, 0 nothing, more than T everything.
    mask_lam: the paper's lambda_t; 0.4 is the middle of the authors' grid of 0.2 to 0.6.
    lam: the paper's alpha, tuned there; 0.3 is task arithmetic's.
    of: the multi-task vector: "task_arithmetic" is the plain sum, "ties" the sum of trimmed
        entries that have the elected sign.
    density: for "ties" only, see there; 0.2 is the paper's.
    statistic: of the whole model, from `first_pass`; without it this tensor stands alone.
    """
    if statistic is None:
        flat = task_vectors.reshape(len(task_vectors), -1)
        statistic = first_pass(lambda: [flat], of=of, density=density)
    tau_mtl = statistic.vector(task_vectors)
    count = recognized(task_vectors, tau_mtl, mask_lam).sum(dim=0)
    return lam * torch.where(count >= k, tau_mtl, 0.0)
