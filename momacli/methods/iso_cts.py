"""Isotropic merging in common and task-specific subspaces (Marczak et al. 2025, arXiv:2502.04959).

1. Common: the top s left and right singular directions of Delta = sum_t tau_t.
2. Task-specific: for each t the top (r - s) / T directions of tau_t - U_c U_c^T tau_t, where
   r = min(m, n).
3. U = [U_1 .. U_T, U_c] and V likewise, each replaced by its nearest isometry; the result is
   lambda * mean(sigma) * U V^T, with sigma all the singular values taken in 1 and 2.

s is common_fraction * r, moved so that the rest divides by T. Matrices only; every other tensor
is the mean of its task vectors times lambda, as in the public code. Directions whose singular
value is rounding are left out, where the public code takes arbitrary ones (see iso_c).
"""

import torch
from torch import Tensor

from momacli.methods._spectral import is_matrix, leading_svd, nearest_isometry
from momacli.shapes import Float

ELEMENTWISE = False


def iso_cts(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    common_fraction: float = 0.8,
    lam: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Return lam times the flattened span of common and task-specific directions.

    common_fraction: share of the directions given to the common subspace; 0.8 is the paper's,
        1 gives Iso-C.
    lam: the paper's alpha; 1 is FusionBench's. The paper tunes it on validation data.
    """
    if not is_matrix(task_vectors):
        return lam * task_vectors.mean(dim=0)
    T, *shape = task_vectors.shape
    r = min(shape)
    each = min(round((r - int(r * common_fraction)) / T), r // T)
    common = leading_svd(task_vectors.sum(dim=0, dtype=torch.float64), r - each * T)
    u_c = common[0]
    parts = [
        leading_svd(tau - u_c @ (u_c.mT @ tau), each) for tau in map(Tensor.double, task_vectors)
    ]
    us, sigmas, vts = zip(*parts, common, strict=True)
    sigma = torch.cat(sigmas)
    strength = lam * sigma.sum() / max(1, len(sigma))
    u = nearest_isometry(torch.cat(us, dim=1))
    vt = nearest_isometry(torch.cat(vts))
    return (strength * (u @ vt)).to(task_vectors.dtype)
