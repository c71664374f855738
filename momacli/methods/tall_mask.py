"""TALL masks (Wang et al. 2024, arXiv:2405.07813): one expert out of the multi-task vector.

theta_t^ = theta_0 + mask_t * tau_mtl, mask_t = |tau_t| > lambda_t |tau_mtl - tau_t|. The result
is a model for one task, not a merge of all: with it a task costs one bit per parameter.

The published inequality is between theta_t and theta_0; FusionBench puts task vectors in their
places, which makes its mask almost all ones.
"""

import torch
from torch import Tensor

from momacli.methods._reconstructed_task import checked_task
from momacli.methods._tall_masks import MultiTask, Of, first_pass, recognized
from momacli.shapes import Float

ELEMENTWISE = True
STORED_NUMBERS = 0
"""What a task needs besides one bit a parameter."""


def tall_mask(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    task: int | None = None,
    mask_lam: float = 0.4,
    of: Of = "task_arithmetic",
    density: float = 0.2,
    statistic: MultiTask | None = None,
) -> Float[Tensor, "*shape"]:
    """Return the entries of the multi-task vector that one task recognizes.

    task: the expert to reconstruct, here by its index; a merge takes its name, and makes a model
        of every expert where none is named.
    mask_lam: the paper's lambda_t, tuned per task there; 0.4 is the middle of its grid of 0.2
        to 0.6. More of it keeps less.
    of: the multi-task vector: "task_arithmetic" is the plain sum, "ties" the sum of trimmed
        entries that have the elected sign.
    density: for "ties" only, see there; 0.2 is the paper's.
    statistic: of the whole model, from `first_pass`; without it this tensor stands alone.
    """
    tau = task_vectors[checked_task(task, len(task_vectors))]
    if statistic is None:
        flat = task_vectors.reshape(len(task_vectors), -1)
        statistic = first_pass(lambda: [flat], of=of, density=density)
    tau_mtl = statistic.vector(task_vectors)
    return torch.where(recognized(tau, tau_mtl, mask_lam), tau_mtl, 0.0)
