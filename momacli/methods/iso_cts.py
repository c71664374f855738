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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from momacli.methods._parts import Parts, TensorParts
from momacli.methods._row_blocks import (
    Directions,
    leading_directions,
    owned_columns,
    summed,
    to_isometry,
)
from momacli.methods._spectral import is_matrix, leading_svd, nearest_isometry, sum_of
from momacli.shapes import Float

ELEMENTWISE = False


@dataclass(frozen=True)
class Subspaces:
    """The merge of rows: their share of all left directions times a matrix."""

    common: Directions  # of Delta
    shared: Float[Tensor, "T s n"]  # U_c^T tau_t
    own: Sequence[Directions]  # of tau_t - U_c U_c^T tau_t
    right: Float[Tensor, "k n"]

    def merged(self, task_vectors: Float[Tensor, "T rows n"]) -> Float[Tensor, "rows n"]:
        """The merge of a block of rows, in float64."""
        return _left(self.common, self.shared, self.own, task_vectors) @ self.right


def iso_cts(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    common_fraction: float = 0.8,
    lam: float = 1.0,
    statistic: Subspaces | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the flattened span of common and task-specific directions.

    common_fraction: share of the directions given to the common subspace; 0.8 is the paper's,
        1 gives Iso-C.
    lam: the paper's alpha; 1 is FusionBench's. The paper tunes it on validation data.
    statistic: of the whole matrix, where these are but some of its rows.
    """
    if not is_matrix(task_vectors):
        return lam * task_vectors.mean(dim=0)
    if statistic is not None:
        return (lam * statistic.merged(task_vectors)).to(task_vectors.dtype)
    T, *shape = task_vectors.shape
    each, most = _counts(min(shape), T, common_fraction)
    common = leading_svd(sum_of(task_vectors), most)
    u_c = common[0]
    parts = [
        leading_svd(tau - u_c @ (u_c.mT @ tau), each) for tau in map(Tensor.double, task_vectors)
    ]
    us, sigmas, vts = zip(*parts, common, strict=True)
    sigma = torch.cat(sigmas)
    strength = lam * sigma.sum() / max(1, len(sigma))
    u = nearest_isometry(torch.cat(us, dim=1))
    vt = nearest_isometry(torch.cat(vts))
    return (u @ vt).mul_(strength).to(task_vectors.dtype)


def in_parts(*, common_fraction: float = 0.8, **_options: Any) -> Parts:
    """Return how parts of a matrix are merged: rows by the directions of the whole."""
    return Parts(partial(_measure, common_fraction=common_fraction), rows=True, tall=True)


def _measure(tensor: TensorParts, *, common_fraction: float) -> dict[str, Any]:
    def taus() -> Iterator[Tensor]:
        return (block.double() for _, block in tensor.matrices())

    each, most = _counts(tensor.shape[1], tensor.experts, common_fraction)
    [common] = leading_directions(lambda: (block.sum(0)[None] for block in taus()), most)
    shared = summed(common.left(block.sum(0)).mT @ block for block in taus())
    own = leading_directions(
        lambda: (block - common.left(block.sum(0)) @ shared for block in taus()), each
    )
    straight = to_isometry(lambda: (_left(common, shared, own, block)[None] for block in taus()))
    every = [*own, common]
    sigma = torch.cat([one.sigma for one in every])
    strength = sigma.sum() / max(1, len(sigma))
    vt = nearest_isometry(torch.cat([one.v.mT for one in every]))
    return {"statistic": Subspaces(common, shared, own, strength * straight @ vt)}


def _left(
    common: Directions,
    shared: Float[Tensor, "T s n"],
    own: Sequence[Directions],
    task_vectors: Float[Tensor, "T rows n"],
) -> Float[Tensor, "rows k"]:
    """Rows of [U_1 .. U_T, U_c]."""
    exact = task_vectors.double()
    u_c = common.left(exact.sum(0))
    return torch.cat([owned_columns(own, exact - u_c @ shared), u_c], dim=1)


def _counts(r: int, T: int, common_fraction: float) -> tuple[int, int]:
    """How many directions each task has of its own, and how many are common, at most."""
    each = min(round((r - int(r * common_fraction)) / T), r // T)
    return each, r - each * T
