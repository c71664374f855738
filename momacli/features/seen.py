"""The rotation that fits best what a head sees of features, and then the rest of them.

A linear head sees features in the row space of its weights alone, of which V [d, r] is an
orthonormal basis; softmax takes no notice of what all classes have in common, so rows are taken
about their mean. The best orthogonal map of all of a space (Schönemann 1966) spends its freedom on
directions that no answer depends on. Here, in this order:

    F = argmin E|F^T z_m - V^T z_t|^2   over F^T F = I, F [d, r]
    A = V F^T + V' Q F'^T               with V', F' the complements, Q the best orthogonal map there

F has no closed form where r < d, so it is searched for from the best map of all of the space. With
C = E[z_t z_m^T], G = E[z_m z_m^T] and L >= |G|, the orthonormal polar factor of
(L I - G) F + C^T V never raises the distance, for it minimises a linear bound of it. Nesterov's
extrapolation hastens that; it begins anew where the distance rises.

A is the polar factor of s V F^T + (I - V V^T) C (I - F F^T), s > 0: the two terms have nothing in
common, so each is made orthogonal by itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from momacli.features.procrustes import polar_factor
from momacli.shapes import Float

STEPS = 50
"""From the best map of all of the space; of eight image tasks, the distance is then within 1 % of
that after 1,000."""

STEPS_ON = 10
"""From the solution for features that have changed a little since."""

MOST = 128
"""Directions that are fitted first, of heads that see more: those they weigh most."""

_RANK = 1e-6  # of the largest singular value; smaller ones are of rounding


def seen_by(weight: Float[Tensor, "k d"], *, softmax: bool) -> Float[Tensor, "d r"]:
    """Return an orthonormal basis of what a linear layer sees, in float64.

    softmax: whether it is followed by that, so that only differences of rows count.
    """
    rows = weight.double()
    if softmax and len(rows) > 1:
        rows = rows - rows.mean(dim=0)
    if not rows.isfinite().all():  # whoever computes answers will say so
        return rows.new_zeros(rows.shape[1], 0)
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > _RANK * sizes[0]).sum())
    found: Tensor = basis[: min(rank, MOST)].mT
    return found


def rotations_seen(
    cross: Float[Tensor, "T d d"],
    gram: Float[Tensor, "T d d"],
    seen: Sequence[Float[Tensor, "d _"]],
    start: Float[Tensor, "T d d"] | None = None,
) -> Float[Tensor, "T d d"]:
    """Return A of each task.

    cross, gram: C and G, in float64.
    start: orthogonal matrices to begin at, nearby; by default the best of all of the space.
    """
    begin, steps = (polar_factor(cross), STEPS) if start is None else (start.double(), STEPS_ON)
    each = zip(cross, gram, seen, begin, strict=True)
    return polar_factor(torch.stack([_in_two_parts(*one, steps) for one in each]))


def _in_two_parts(
    C: Float[Tensor, "d d"],
    G: Float[Tensor, "d d"],
    V: Float[Tensor, "d r"],
    begin: Float[Tensor, "d d"],
    steps: int,
) -> Float[Tensor, "d d"]:
    """What A is the polar factor of."""
    d, r = V.shape
    if r in (0, d):
        return C
    F = _fitted(C.mT @ V, G, begin.mT @ V, steps)
    rest = C - V @ (V.mT @ C)
    rest = rest - (rest @ F) @ F.mT
    found: Tensor = torch.linalg.matrix_norm(C) * V @ F.mT + rest
    return found


def _fitted(
    wanted: Float[Tensor, "d r"],
    gram: Float[Tensor, "d d"],
    start: Float[Tensor, "d r"],
    steps: int,
) -> Float[Tensor, "d r"]:
    """Return the frame F with the least tr(F^T G F) - 2 tr(F^T B), B = C^T V."""
    L = torch.linalg.matrix_norm(gram)
    frame = ahead = polar_factor(start)
    least, pace = _distance(frame, gram, wanted), 1.0
    for _ in range(steps):
        found = polar_factor(L * ahead - gram @ ahead + wanted)
        distance = _distance(found, gram, wanted)
        if distance > least:
            ahead, pace = frame, 1.0
            continue
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = found + (pace - 1) / faster * (found - frame)
        frame, least, pace = found, distance, faster
    return frame


def _distance(frame: Tensor, gram: Tensor, wanted: Tensor) -> float:
    return float((frame * (gram @ frame - 2 * wanted)).sum())
