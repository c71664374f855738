"""Rotations and the skew-symmetric matrices that generate them (Cayley map)."""

import math

import torch
from torch import Tensor

from momacli.shapes import Float


def cayley(a: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Map a skew-symmetric A to the rotation R = (I - A)^-1 (I + A).

    R is orthogonal with determinant 1, and R = I where A = 0. A turn by phi in a plane has the
    entry tan(phi / 2) in A; turns by exactly 180 degrees are not reached.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return eye + cayley_minus_identity(a)


def cayley_minus_identity(a: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Return R - I = 2 (I - A)^-1 A, to full relative precision also for small turns."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    minus: Tensor = torch.linalg.solve(eye - a, 2 * a)
    return minus


def cayley_inverse(r: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], float]:
    """Return the skew-symmetric A = (R + I)^-1 (R - I), and a bound on the condition of R + I.

    cayley(A) = R. The bound is huge, infinite or not a number, and A worthless, where R reflects
    or turns a plane by 180 degrees.
    """
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    a: Tensor = torch.linalg.solve_ex(r + eye, r - eye).result
    condition = math.sqrt(1 + float(a.square().sum()))  # |1 + e^(i phi)| = 2 / sqrt(1 + a^2)
    return (a - a.mT) / 2, condition


def nearest_orthogonal(m: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the orthogonal Q nearest to M, its polar factor U V^T; its determinant may be -1.

    Q maximizes tr(Q^T M), so M = W0^T W gives the orthogonal Procrustes solution of W0 Q ~ W.
    Unlike the nearest isometry, Q is completed to full rank where M has none.
    """
    u, _, vt = torch.linalg.svd(m)
    q: Tensor = u @ vt
    return q


def merge_in_lie_algebra(generators: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum of the generators A_t, rescaled to their mean Frobenius norm.

    The magnitude rule of OrthoMerge (arXiv:2602.05943), (1/T) c sum_t A_t with
    c = sum_t |A_t| / |sum_t A_t|: rotations about different axes are not averaged away.
    Zero where the sum cancels and so has no direction.
    """
    total = generators.sum(dim=0)
    norms = torch.linalg.vector_norm(generators.flatten(1), dim=1)
    length = torch.linalg.vector_norm(total)
    if length <= 1e-8 * norms.sum():
        return torch.zeros_like(total)
    merged: Tensor = total * (norms.mean() / length)
    return merged
