"""MagMax (Marczak et al. 2024, arXiv:2407.06322): per entry, the expert that moved most.

tau = lambda * tau_t* with t* = argmax_t |tau_t|, entry by entry.

Where two experts moved equally far in opposite directions, the positive one is taken; the
authors' code takes the later expert, which would make the result depend on their order.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ELEMENTWISE = True


def magmax(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    lam: float = 0.5,
) -> Float[Tensor, "*shape"]:
    """Return lam times the entry of largest magnitude among the task vectors.

    lam: the paper's lambda; 0.5 is the authors' value for the eight CLIP tasks.
    """
    highest, lowest = task_vectors.amax(dim=0), task_vectors.amin(dim=0)
    return lam * torch.where(highest >= -lowest, highest, lowest)
