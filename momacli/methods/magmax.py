"""MagMax (Marczak et al. 2024, arXiv:2407.06322): per entry, the expert that moved most.

tau = lambda * tau_t* with t* = argmax_t |tau_t|, entry by entry.

Where two experts moved equally far in opposite directions, the positive one is taken; the
authors' code takes the later expert, which would make the result depend on their order.
"""

import numpy as np

from momacli.methods._arrays import on_entries
from momacli.shapes import Float

ELEMENTWISE = True


@on_entries
def magmax(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    lam: float = 0.5,
) -> Float[np.ndarray, " n"]:
    """Return lam times the entry of largest magnitude among the task vectors.

    lam: the paper's lambda; 0.5 is the authors' value for the eight CLIP tasks.
    """
    highest, lowest = task_vectors.max(axis=0), task_vectors.min(axis=0)
    moved_most: np.ndarray = np.where(highest >= -lowest, highest, lowest)
    moved_most *= task_vectors.dtype.type(lam)
    return moved_most
