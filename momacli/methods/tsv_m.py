"""Task singular vectors merging (Gargiulo et al. 2025, arXiv:2412.00081): TSV-M.

tau_t ~ U_t S_t V_t^T, its top r / T singular triplets (r = min(m, n)). U = [U_1 .. U_T] and
V = [V_1 .. V_T] are replaced by their nearest isometries, so that tasks no longer share
directions; the result is lambda * U diag(S_1 .. S_T) V^T. Matrices only; every other tensor is
the mean of its task vectors times lambda, as in the authors' code.

At least one triplet is kept per task; the authors' code keeps none of a matrix with r < T, whose
update it thereby drops. Triplets whose singular value is rounding are left out: the
authors' code gives a task vector of lower rank arbitrary directions, which push the others aside.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from momacli.methods._parts import Parts, TensorParts
from momacli.methods._row_blocks import Owned, leading_directions, owned_columns, to_isometry
from momacli.methods._spectral import is_matrix, leading_svd, nearest_isometry
from momacli.shapes import Float

ELEMENTWISE = False


def tsv_m(
    task_vectors: Float[Tensor, "T *shape"], *, lam: float = 1.0, statistic: Owned | None = None
) -> Float[Tensor, "*shape"]:
    """Return lam times the sum of the tasks' leading triplets, made orthogonal to each other.

    lam: the paper's alpha; 1 is the paper's.
    statistic: of the whole matrix, where these are but some of its rows.
    """
    if not is_matrix(task_vectors):
        return lam * task_vectors.mean(dim=0)
    if statistic is not None:
        return (lam * statistic.merged(task_vectors)).to(task_vectors.dtype)
    T, *shape = task_vectors.shape
    each = max(1, min(shape) // T)
    us, sigmas, vts = zip(*(leading_svd(tau, each) for tau in task_vectors), strict=True)
    u = nearest_isometry(torch.cat(us, dim=1))
    del us  # as large as the result in float64
    vt = nearest_isometry(torch.cat(vts))
    return (u.mul_(lam * torch.cat(sigmas)) @ vt).to(task_vectors.dtype)


def in_parts(**_options: Any) -> Parts:
    """Return how parts of a matrix are merged: rows by the directions of the whole."""
    return Parts(_measure, rows=True, tall=True)


def _measure(tensor: TensorParts) -> dict[str, Any]:
    def taus() -> Iterator[Tensor]:
        return (block.double() for _, block in tensor.matrices())

    directions = leading_directions(taus, max(1, tensor.shape[1] // tensor.experts))
    straight = to_isometry(lambda: (owned_columns(directions, block)[None] for block in taus()))
    vt = nearest_isometry(torch.cat([one.v.mT for one in directions]))
    sigma = torch.cat([one.sigma for one in directions])
    return {"statistic": Owned(directions, (straight * sigma) @ vt)}
