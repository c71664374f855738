"""The orthogonal matrix that best maps one set of features on another, in closed form.

A* = argmin_{A^T A = I} sum_i |A z_m,i - z_t,i|^2 = U V^T, where U S V^T = sum_i z_t,i z_m,i^T
(Schönemann 1966; MOMA Eq. 8 with the constraint exact). A* may have determinant -1.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def polar_factor(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Return the orthogonal matrix U V^T nearest to a square matrix U S V^T, in its own type.

    Computed in float64. Where the matrix is singular one of several nearest is returned, and
    for the zero matrix the identity.
    """
    wide = matrix.double()
    zero = (wide == 0).all(dim=-1).all(dim=-1)[..., None, None]
    eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device)
    u, _, vh = torch.linalg.svd(torch.where(zero, eye, wide))
    nearest: Tensor = (u @ vh).to(matrix.dtype)
    return nearest


def procrustes(
    merged: Float[Tensor, "N d"], finetuned: Float[Tensor, "N d"]
) -> Float[Tensor, "d d"]:
    """Return the orthogonal A that minimises sum_i |A z_m,i - z_t,i|^2."""
    return polar_factor(finetuned.double().mT @ merged.double()).to(merged.dtype)


def orthogonality_error(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch"]:
    """Return max |A^T A - I|."""
    wide = matrix.double()
    eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device)
    return (wide.mT @ wide - eye).abs().amax(dim=(-2, -1))
