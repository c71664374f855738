"""Weight averaging (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

theta_m = theta_0 + sum_t w_t tau_t / sum_t w_t; with equal weights, the mean of the experts.
"""

import numpy as np

from momacli.methods._arrays import on_entries
from momacli.methods._sums import OnePass, added_to_base, weighted_sum
from momacli.shapes import Float

ELEMENTWISE = True
PASSES_ON_NONFINITE = True


@on_entries
def average(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    lam: float = 1.0,
) -> Float[np.ndarray, " n"]:
    """Return lam times the weighted mean of the task vectors.

    weights: one per expert, default all equal; only their ratios matter, and their sum
        must not be zero.
    lam: factor on the mean; 1 is the average of the paper.
    """
    return weighted_sum(task_vectors, *factors(len(task_vectors), weights, lam))


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    lam: float = 1.0,
) -> OnePass:
    """Return theta_0 + the average of what the experts add to it, as `average` has it."""
    return added_to_base(theta_0, thetas, *factors(len(thetas), weights, lam))


def factors(
    T: int, weights: Float[np.ndarray, " T"] | None, lam: float
) -> tuple[Float[np.ndarray, " T"] | None, float]:
    """Return the weight of each task vector, or None for 1, and the factor on their sum."""
    if weights is None:
        return None, lam / T
    return weights / weights.sum(), lam
