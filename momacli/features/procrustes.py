"""The orthogonal matrix that best maps one set of features on another, in closed form.

A* = argmin_{A^T A = I} sum_i |A z_m,i - z_t,i|^2 = U V^T, where U S V^T = sum_i z_t,i z_m,i^T
(Schönemann 1966; MOMA Eq. 8 with the constraint exact). A* may have determinant -1.
"""

import torch
from torch import Tensor

from momacli.shapes import Float

_MOST, _LOOK = 80, 4
"""Newton-Schulz steps: each makes singular values half as large again until they come near one,
so these reach 1e-12 of the largest; and steps between two looks, for which a GPU is waited for."""

_NEAR = 1e-6
"""Norm of X^T X - I from which one step more leaves rounding: its square comes next."""


def polar_factor(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Return U V^T, the matrix with orthonormal columns nearest to U S V^T, m >= n, in its type.

    Computed in float64: on a processor by singular values, elsewhere by products alone, which are
    all that a GPU does at its full rate.
    Where the matrix is singular one of several nearest is returned, and for the zero matrix the
    identity.
    """
    wide = matrix.double()
    if wide.device.type != "cpu":
        found = _by_products(wide)
        if found is not None:
            return found.to(matrix.dtype)
    zero = (wide == 0).all(dim=-1).all(dim=-1)[..., None, None]
    eye = torch.eye(*wide.shape[-2:], dtype=wide.dtype, device=wide.device)
    u, _, vh = torch.linalg.svd(torch.where(zero, eye, wide), full_matrices=False)
    nearest: Tensor = (u @ vh).to(matrix.dtype)
    return nearest


def _by_products(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"] | None:
    """The same by Newton-Schulz steps X <- X (3 I - X^T X) / 2; None where some is singular."""
    gram = matrix.mT @ matrix
    largest = torch.linalg.matrix_norm(gram).sqrt()[..., None, None]  # no singular value is larger
    X, eye = matrix / largest, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gram = gram / largest.square()
    for step in range(_MOST):
        if step % _LOOK == 0 and bool((torch.linalg.matrix_norm(gram - eye) < _NEAR).all()):
            break
        X = X @ (3 * eye - gram) / 2
        gram = X.mT @ X
    else:
        return None
    found: Tensor = X @ (3 * eye - gram) / 2
    return found


def procrustes(
    merged: Float[Tensor, "N d"], finetuned: Float[Tensor, "N d"]
) -> Float[Tensor, "d d"]:
    """Return the orthogonal A that minimises sum_i |A z_m,i - z_t,i|^2."""
    return polar_factor(finetuned.double().mT @ merged.double()).to(merged.dtype)


def orthogonality_error(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Return max |A^T A - I|."""
    wide = matrix.double()
    eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device)
    return (wide.mT @ wide - eye).abs().amax(dim=(-2, -1))
