"""Arcee Fusion (Arcee AI 2025, mergekit): keep only the important changes of one expert.

importance = |tau| * KL(softmax(theta_1) || softmax(theta_0)), the softmax over the last
dimension; tau where importance >= median + 1.5 * (Q3 - Q1), else 0. There is no paper.

The divergences of fine-tuning are about 1e-8, less than the rounding errors of float32 add up
to, so they are computed in float64, without mergekit's 1e-8 in the logarithm. Quantiles are
exact, where mergekit samples a million entries of a larger tensor at random.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.errors import UsageError

ELEMENTWISE = False
MAX_EXPERTS = 1


def arcee_fusion(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    base: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Return the task vector of the only expert where its importance is an outlier.

    Raises UsageError for more than one expert.
    """
    if len(task_vectors) > MAX_EXPERTS:
        raise UsageError(
            f"arcee-fusion fuses one expert into the base, found {len(task_vectors)}",
            hint="merge the experts first, then fuse the result into the base",
        )
    tau = task_vectors[0]
    if tau.numel() == 0:
        return tau.clone()
    theta_0 = base.double()
    log_p, log_q = (theta_0 + tau).log_softmax(dim=-1), theta_0.log_softmax(dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1, keepdim=tau.ndim > 0).clamp(min=0)
    importance = tau.abs() * divergence
    q1, median, q3 = (_quantile(importance, q) for q in (0.25, 0.5, 0.75))
    return torch.where(importance >= median + 1.5 * (q3 - q1), tau, 0.0)


def _quantile(values: Tensor, q: float) -> Tensor:
    """The entry of rank floor(q (n - 1)), from 0: no interpolation."""
    return values.flatten().kthvalue(1 + int(q * (values.numel() - 1))).values
