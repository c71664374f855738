"""How far merged features are from fine-tuned ones (MOMA section 3.4, after Zhou et al. 2024)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.shapes import Float


def cosine(u: Float[Tensor, "N d"], v: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """Return cos(u, v) of each pair of rows; 0 where one of them is zero."""
    return torch.nn.functional.cosine_similarity(u, v, dim=1)


def coefficient(u: Float[Tensor, "N d"], v: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
    """Return coef(u, v) = u.v / |v|^2 of each pair of rows; 0 where v is zero."""
    length = (v * v).sum(dim=1)
    return torch.where(length > 0, (u * v).sum(dim=1) / length.clamp(min=1e-30), 0.0)


@dataclass(frozen=True)
class Distribution:
    """Some numbers of many, such as the cosines of all samples."""

    mean: float
    deviation: float  # standard deviation, 0 for a single value
    low: float  # 5 % are below
    median: float
    high: float  # 5 % are above


def distribution(values: Float[Tensor, " N"]) -> Distribution:
    """Describe at least one value."""
    wide = values.double().cpu()
    low, median, high = wide.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=wide.dtype)).tolist()
    return Distribution(
        float(wide.mean()), float(wide.std(correction=0)), float(low), float(median), float(high)
    )
