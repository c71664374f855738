"""Task arithmetic (Ilharco et al. 2022, arXiv:2212.04089; MOMA Eq. 1).

theta_m = theta_0 + lambda * sum_t w_t tau_t. A negative weight makes the model forget a task.
"""

from jaxtyping import Float
from torch import Tensor

ELEMENTWISE = True


def task_arithmetic(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    weights: Float[Tensor, " T"] | None = None,
    lam: float = 0.3,
) -> Float[Tensor, "*shape"]:
    """Return lam times the (weighted) sum of the task vectors.

    weights: one per expert, default 1 each.
    lam: the paper's lambda; 0.3 is what the eight-task CLIP literature uses
        (AdaMerging, Surgery, FusionBench), 0.7 its five-task BERT counterpart.
    """
    if weights is not None:
        w = weights.to(task_vectors.dtype)
        task_vectors = w.reshape(-1, *[1] * (task_vectors.ndim - 1)) * task_vectors
    return lam * task_vectors.sum(dim=0)
