"""Isotropic merging in the common subspace (Marczak et al. 2025, arXiv:2502.04959): Iso-C.

Delta = sum_t tau_t = U diag(sigma) V^T becomes lambda * mean(sigma) * U V^T. Matrices only; every
other tensor, convolution kernels included, is the mean of its task vectors times lambda, as in
the public code.

The mean is over the singular values that are not rounding, and only their directions are
raised. The public code takes all min(m, n): the same for a full-rank Delta, but where Delta has
rank r, as for adapters, it adds min(m, n) - r arbitrary directions of full strength.
"""

from typing import Any

from torch import Tensor

from momacli.methods._parts import Parts, TensorParts
from momacli.methods._row_blocks import Directions, leading_directions
from momacli.methods._spectral import is_matrix, leading_svd, sum_of
from momacli.shapes import Float

ELEMENTWISE = False


def iso_c(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    lam: float = 1.0,
    statistic: Directions | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the sum of the task vectors with all its singular values made equal.

    lam: the paper's alpha; 1 is FusionBench's. The paper tunes it on validation data.
    statistic: the directions of the sum, where these are but some of its rows.
    """
    if not is_matrix(task_vectors):
        return lam * task_vectors.mean(dim=0)
    if statistic is None:
        u, sigma, vt = leading_svd(sum_of(task_vectors))
    else:
        u = statistic.left(sum_of(task_vectors))
        sigma, vt = statistic.sigma, statistic.v.mT
    strength = lam * sigma.sum() / max(1, len(sigma))
    return (u @ vt).mul_(strength).to(task_vectors.dtype)


def in_parts(**_options: Any) -> Parts:
    """Return how parts of a matrix are merged: rows by the directions of the whole."""
    return Parts(_measure, rows=True, tall=True)


def _measure(tensor: TensorParts) -> dict[str, Any]:
    [found] = leading_directions(lambda: (sum_of(x)[None] for _, x in tensor.matrices()))
    return {"statistic": found}
