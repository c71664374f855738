"""Orthogonal model merging with residual decoupling (Yang et al. 2026, arXiv:2602.05943).

1. R_t, the orthogonal matrix with W0 R_t nearest to the target of task t: its weights W_t
   (variant "global"), or W0 plus those rows of tau_t that point against the mean of all tasks'
   (variant "conflict").
2. A_t = (R_t + I)^-1 (R_t - I). A = sum_t A_t, rescaled to the mean norm of the A_t, gives
   R = (I - A)^-1 (I + A).
3. W = W0 R + lambda * merge(W_t - W0 R_t), the residuals merged by a method for task vectors.

Matrices only; every other tensor is all residual, as in the authors' code.

The authors turn W0 from the right whatever its shape. A matrix with fewer rows than columns
determines R on its row space only; the rest is arbitrary, and the residuals come out several
times larger than tau_t. Here such a matrix is turned from the left (L W0), which also keeps the
rotation small. Directions in which W0 has no extent are not turned. A task whose R_t cannot be
taken to the Lie algebra (it reflects, or turns by nearly 180 degrees) is all residual.

Adapters of orthogonal fine-tuning (OFT) that all have the same blocks are merged as what they
are, in the Lie algebra, unless an option is given: rotations at their mean norm, no residuals.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from momacli.methods._parts import Parts, TensorParts
from momacli.methods._rotations import (
    cayley_inverse,
    cayley_minus_identity,
    merge_in_lie_algebra,
    nearest_orthogonal,
)
from momacli.methods._row_blocks import summed
from momacli.methods._spectral import is_matrix
from momacli.methods.ties import ties
from momacli.methods.tsv_m import tsv_m
from momacli.shapes import Float

ELEMENTWISE = False


def orthomerge(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    base: Float[Tensor, "*shape"],
    variant: Literal["conflict", "global"] = "conflict",
    residual: Literal["task_arithmetic", "ties", "tsv_m"] = "task_arithmetic",
    lam_residual: float | None = None,
    max_condition: float = 1e3,
    statistic: Float[Tensor, "T d d"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return the step from the base to its merged rotation plus the merged residuals.

    base: theta_0 of this tensor, the paper's W0.
    variant: what is taken for rotation, the part of each task in "conflict" with the others
        (OrthoMerge-C) or all of it ("global", OrthoMerge-G).
    residual: how the residuals are merged: "task_arithmetic" (their sum), "ties" (density 0.2
        and mean, the authors' values, but trimmed per tensor, not over the whole model) or
        "tsv_m".
    lam_residual: factor on the merged residuals; by default the authors', 0.2 for task_arithmetic
        and 1 for ties and tsv_m. With 1, a single task's residual is kept whole, and so the
        task comes back as it is (ties trims it).
    max_condition: a task is all residual where R_t + I may have a larger condition number.
    statistic: the A_t of the whole matrix, where these are but some of its rows.
    """
    if lam_residual is None:
        lam_residual = 0.2 if residual == "task_arithmetic" else 1.0
    if not is_matrix(task_vectors):
        return lam_residual * _merge_residuals(task_vectors, residual)
    targets = _conflicting_rows(task_vectors) if variant == "conflict" else task_vectors
    taus, W0 = task_vectors, base.double()
    wide = statistic is None and base.shape[0] < base.shape[1]
    if wide:  # L W0 is (W0^T L^T)^T
        targets, taus, W0 = targets.mT, taus.mT, W0.mT
    if statistic is None:
        gram = W0.mT @ W0
        generators = torch.stack(
            [_generator(gram, W0.mT @ one.double(), max_condition) for one in targets]
        )
    else:
        generators = statistic
    del targets  # as large as all tasks
    residuals = torch.empty_like(taus)
    for t, A_t in enumerate(generators):
        residuals[t] = taus[t] - W0 @ cayley_minus_identity(A_t)
    turned = W0 @ cayley_minus_identity(merge_in_lie_algebra(generators))
    merged = (turned + lam_residual * _merge_residuals(residuals, residual)).to(base.dtype)
    return merged.mT.contiguous() if wide else merged


def in_parts(
    *,
    variant: Literal["conflict", "global"] = "conflict",
    residual: Literal["task_arithmetic", "ties", "tsv_m"] = "task_arithmetic",
    max_condition: float = 1e3,
    **_options: Any,
) -> Parts | None:
    """Return how parts of a matrix are merged: rows, where residuals are merged by themselves."""
    if residual != "task_arithmetic":
        return None
    measure = partial(_measure, variant=variant, max_condition=max_condition)
    return Parts(measure, rows=True, tall=True)


def _measure(tensor: TensorParts, *, variant: str, max_condition: float) -> dict[str, Any]:
    def products() -> Iterator[Tensor]:
        """W0^T W0, then W0^T target of each task, of what rows have of them."""
        for W0, taus in tensor.matrices():
            targets = _conflicting_rows(taus) if variant == "conflict" else taus
            yield W0.double().mT @ torch.cat([W0[None], targets]).double()

    gram, *moved = summed(products())
    return {"statistic": torch.stack([_generator(gram, one, max_condition) for one in moved])}


def _conflicting_rows(task_vectors: Float[Tensor, "T m n"]) -> Float[Tensor, "T m n"]:
    """Keep the rows whose cosine with the mean of all tasks' rows is negative."""
    mean = task_vectors.mean(dim=0)
    conflicts = (task_vectors * mean).sum(dim=2, keepdim=True) < 0
    return torch.where(conflicts, task_vectors, 0.0)


def _generator(
    gram: Float[Tensor, "d d"], moved: Float[Tensor, "d d"], max_condition: float
) -> Float[Tensor, "d d"]:
    """The A_t of the R_t that maximizes tr(R_t^T (W0^T W0 + W0^T target)); 0 if unusable."""
    if not moved.any():
        return torch.zeros_like(moved)
    d = gram.shape[0]
    # A pull towards the identity the size of float32 rounding: it decides where W0 cannot.
    ridge = torch.finfo(torch.float32).eps * gram.trace() / d
    eye = torch.eye(d, dtype=gram.dtype, device=gram.device)
    A_t, condition = cayley_inverse(nearest_orthogonal(gram + ridge * eye + moved))
    return A_t if condition <= max_condition else torch.zeros_like(A_t)


def _merge_residuals(
    residuals: Float[Tensor, "T *shape"], method: Literal["task_arithmetic", "ties", "tsv_m"]
) -> Float[Tensor, "*shape"]:
    if method == "ties":
        return ties(residuals, density=0.2, lam=1.0)
    if method == "tsv_m":
        return tsv_m(residuals, lam=1.0)
    return residuals.sum(dim=0)
