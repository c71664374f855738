"""How far merged features are from fine-tuned ones (MOMA section 3.4, after Zhou et al. 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor


def cosine(u: Float[Tensor, "N d"], v: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """Return cos(u, v) of each pair of rows; 0 where one of them is zero."""
    return torch.nn.functional.cosine_similarity(u, v, dim=1)


def coefficient(u: Float[Tensor, "N d"], v: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """Return coef(u, v) = u.v / |v|^2 of each pair of rows; 0 where v is zero."""
    length = (v * v).sum(dim=1)
    return torch.where(length > 0, (u * v).sum(dim=1) / length.clamp(min=1e-30), 0.0)
