"""The best matrix of a family between two sets of features, from their second moments alone.

    minimise sum_i |A z_m,i - z_t,i|^2   over A in the family   (MOMA Eq. 7, Table 1, b = 0)

    orthogonal  A^T A = I           A = U V^T                        (Schönemann 1966)
    similarity  A^T A = s^2 I       A = s U V^T, s = tr(S) / tr(G)
    scaling     A diagonal          a_j = C_jj / G_jj
    linear      none                A = C (G + ridge I)^-1
where C = E[z_t z_m^T] = U S V^T and G = E[z_m z_m^T].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.features.procrustes import polar_factor

RIDGE = 1e-3
"""Of the linear family, as a share of the mean of G's diagonal: keeps few samples from
exploding where the features span little."""


@dataclass(frozen=True)
class Moments:
    """Second moments of T pairs of feature sets, in float64."""

    cross: Float[Tensor, "T d d"]  # C = E[z_t z_m^T]
    gram: Float[Tensor, "T d d"]  # G = E[z_m z_m^T]


def moments(merged: Float[Tensor, "n d"], finetuned: Float[Tensor, "n d"]) -> Moments:
    """Return the moments of one pair of feature sets, T = 1."""
    z_m, z_t = merged.double(), finetuned.double()
    return Moments((z_t.mT @ z_m)[None] / len(z_m), (z_m.mT @ z_m)[None] / len(z_m))


def orthogonal(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best orthogonal matrix; its determinant may be -1."""
    return polar_factor(given.cross)


def similarity(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best orthogonal matrix times a positive number."""
    q = polar_factor(given.cross)
    fitted = (q * given.cross).sum(dim=(1, 2))  # tr(Q^T C) = tr(S)
    size = given.gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    scale = torch.where(size > 0, fitted / size.clamp(min=1e-300), 1.0)
    return scale[:, None, None] * q


def scaling(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best diagonal matrix; 1 where the merged feature is always zero."""
    top = given.cross.diagonal(dim1=1, dim2=2)
    bottom = given.gram.diagonal(dim1=1, dim2=2)
    return torch.diag_embed(torch.where(bottom > 0, top / bottom.clamp(min=1e-300), 1.0))


def linear(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best matrix, with a small ridge; any may come out, singular ones too."""
    d = given.gram.shape[-1]
    eye = torch.eye(d, dtype=given.gram.dtype, device=given.gram.device)
    size = given.gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-300)
    regular = given.gram + RIDGE * size[:, None, None] * eye
    solution: Tensor = torch.linalg.solve(regular, given.cross.mT)
    return solution.mT


FAMILIES: Mapping[str, Callable[[Moments], Float[Tensor, "T d d"]]] = {
    "orthogonal": orthogonal,
    "similarity": similarity,
    "scaling": scaling,
    "linear": linear,
}
"""Family name -> what solves it."""
