"""Model Stock (Jang et al. 2024, arXiv:2403.19522): the point nearest the experts' center.

theta_m = t * mean_t(theta_t) + (1 - t) * theta_0, t = T cos / (1 + (T - 1) cos), where cos is
the mean cosine between two task vectors of this layer: where experts agree, their average;
where they have nothing in common, the base.

A negative cosine counts as 0, so that t lies in [0, 1]; the formula would step away from the
experts, or to infinity at cos = -1/(T - 1). mergekit lets it, and its guard against division
by zero (1e-6) weakens the cosines of task vectors shorter than 1e-3. FusionBench averages
angles; cosines are averaged here. One expert alone is returned as it is.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.methods._rows import as_rows

ELEMENTWISE = False

_CHUNK = 1 << 20  # entries per expert that are held in float64 at a time


def model_stock(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    per: Literal["tensor", "row"] = "tensor",
) -> Float[Tensor, "*shape"]:
    """Return t times the mean of the task vectors, with t from their cosines.

    per: what has a t of its own; "tensor" is the authors' code, "row" (an output unit) is
        mergekit's filter_wise.
    """
    T = task_vectors.shape[0]
    rows = as_rows(task_vectors, per)
    if T == 1:
        return task_vectors[0].clone()
    cos = _mean_cosine(rows).clamp(min=0)
    t = T * cos / (1 + (T - 1) * cos)
    return (t[:, None].to(rows.dtype) * rows.mean(dim=0)).reshape(task_vectors.shape[1:])


def _mean_cosine(rows: Float[Tensor, "T rows n"]) -> Float[Tensor, " rows"]:
    """Mean cosine over all pairs of experts, in float64; a zero vector has cosine 0 with all."""
    T, count, _ = rows.shape
    gram = rows.new_zeros(count, T, T, dtype=torch.float64)
    for part in torch.split(rows, max(1, _CHUNK // max(1, count)), dim=2):
        x = part.double()
        gram += torch.einsum("trn,srn->rts", x, x)
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = gram * scale[:, :, None] * scale[:, None, :]
    others = cosines.sum(dim=(1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(dim=1)
    return others / (T * (T - 1))
