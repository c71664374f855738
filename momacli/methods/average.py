"""Weight averaging (Wortsman et al. 2022, Model soups, arXiv:2203.05482).

theta_m = theta_0 + sum_t w_t tau_t / sum_t w_t; with equal weights, the mean of the experts.
"""

from jaxtyping import Float
from torch import Tensor

ELEMENTWISE = True


def average(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    weights: Float[Tensor, " T"] | None = None,
    lam: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Return lam times the weighted mean of the task vectors.

    weights: one per expert, default all equal; only their ratios matter, and their sum
        must not be zero.
    lam: factor on the mean; 1 is the average of the paper.
    """
    T = task_vectors.shape[0]
    if weights is None:
        return task_vectors.sum(dim=0) * (lam / T)
    w = (weights / weights.sum()).to(task_vectors.dtype)
    return lam * (w.reshape(T, *[1] * (task_vectors.ndim - 1)) * task_vectors).sum(dim=0)
