"""Task arithmetic (Ilharco et al. 2022, arXiv:2212.04089; MOMA Eq. 1).

theta_m = theta_0 + lambda * sum_t w_t tau_t. A negative weight makes the model forget a task.
"""

import numpy as np

from momacli.methods._arrays import on_entries
from momacli.methods._sums import OnePass, added_to_base, weighted_sum
from momacli.shapes import Float

ELEMENTWISE = True
PASSES_ON_NONFINITE = True


@on_entries
def task_arithmetic(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    lam: float = 0.3,
) -> Float[np.ndarray, " n"]:
    """Return lam times the (weighted) sum of the task vectors.

    weights: one per expert, default 1 each.
    lam: the paper's lambda; 0.3 is what the eight-task CLIP literature uses
        (AdaMerging, Surgery, FusionBench), 0.7 its five-task BERT counterpart.
    """
    return weighted_sum(task_vectors, weights, lam)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    lam: float = 0.3,
) -> OnePass:
    """Return theta_0 + what `task_arithmetic` makes of the experts' task vectors."""
    return added_to_base(theta_0, thetas, weights, lam)
