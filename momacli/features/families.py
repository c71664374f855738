"""The best map of a family between two sets of features, in closed form.

    minimise sum_i |A z_m,i + b - z_t,i|^2   over A, b in the family   (MOMA Eq. 7 and Table 1)

    affine      none                A = A_lin + (C' - A_lin G') (G' + ridge I)^-1, b = the rest
    linear      b = 0               A = sQ + (C - sQ G) (G + (ridge + p) I)^-1
    invertible  b = 0, det A != 0   the linear one, its condition number cut
    similarity  A^T A = s^2 I       A = s Q, s = tr(Q^T C) / tr(G)
    orthogonal  A^T A = I           A = Q = U V^T                    (Schönemann 1966), or,
                                    where heads are told of, as `features.seen` has it
    scaling     A diagonal          a_j = C_jj / G_jj
where C = E[z_t z_m^T] = U S V^T and G = E[z_m z_m^T]; C' and G' are those of centred features.

The ridge draws towards the next smaller family: what the samples leave open stays as rigid as
it was, and on the samples that are fitted affine <= linear <= similarity <= orthogonal holds for
the squared distance exactly. Table 1 writes A^T A = sI for similarities, with s^2 here.

Samples say nothing of directions that they do not span, where the polar factor of C is any
rotation, and little where they are few. A prior, by default none, draws Q to the identity, which
is the polar factor of C + pI, and linear maps to the similarity.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.features.procrustes import polar_factor
from momacli.features.seen import rotations_seen
from momacli.shapes import Float

RIDGE = 1e-3
"""Of the linear and affine families, as a share of the mean of G's diagonal: keeps few samples
from exploding where the features span little."""

CONDITION = 1e3
"""Largest singular value over the smallest of what counts as invertible: its inverse is then
good to four digits in float32. Any matrix is as near to an invertible one as you like, so
without a bound the family would be the linear one."""


@dataclass(frozen=True)
class Moments:
    """Second moments of T pairs of feature sets, in float64, and what else maps are fitted to."""

    cross: Float[Tensor, "T d d"]  # C = E[z_t z_m^T]
    gram: Float[Tensor, "T d d"]  # G = E[z_m z_m^T]
    prior: Float[Tensor, " T"]  # p, what the identity weighs beside C and G
    seen: Sequence[Float[Tensor, "d _"]] = ()  # what each head sees; without it all of a space
    start: Float[Tensor, "T d d"] | None = None  # where searches begin, if not anew


def moments(
    merged: Float[Tensor, "n d"], finetuned: Float[Tensor, "n d"], *, prior: float = 0.0
) -> Moments:
    """Return the moments of one pair of feature sets, T = 1.

    prior: of how many more samples the identity is worth along each axis: samples as long as
        z_m is along an axis in the mean, which are to stay as they are (of the linear family, to
        be as the similarity maps them).
    """
    z_m, z_t = merged.double(), finetuned.double()
    cross, gram = (z_t.mT @ z_m)[None] / len(z_m), (z_m.mT @ z_m)[None] / len(z_m)
    size = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    return Moments(cross, gram, prior * size / len(z_m))


def orthogonal(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best orthogonal matrix; its determinant may be -1."""
    eye = torch.eye(given.cross.shape[-1], dtype=given.cross.dtype, device=given.cross.device)
    p = given.prior[:, None, None] * eye
    if not given.seen:
        return polar_factor(given.cross + p)
    return rotations_seen(given.cross + p, given.gram + p, given.seen, given.start)


def similarity(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best orthogonal matrix times a positive number."""
    q = orthogonal(given)
    fitted = (q * given.cross).sum(dim=(1, 2))  # tr(Q^T C)
    size = given.gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    scale = torch.where(size > 0, fitted / size.clamp(min=1e-300), 1.0)
    return scale[:, None, None] * q


def scaling(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best diagonal matrix; 1 where the merged feature is always zero."""
    top = given.cross.diagonal(dim1=1, dim2=2)
    bottom = given.gram.diagonal(dim1=1, dim2=2)
    return torch.diag_embed(torch.where(bottom > 0, top / bottom.clamp(min=1e-300), 1.0))


def linear(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the best matrix, with a small ridge; any may come out, singular ones too.

    The prior is as many more samples along each axis, that the similarity maps.
    """
    return _drawn_towards(similarity(given), given)


def invertible(given: Moments) -> Float[Tensor, "T d d"]:
    """Return the linear one with its smallest singular values raised to the largest / CONDITION."""
    u, s, vh = torch.linalg.svd(linear(given))
    top = s[:, :1]
    floor = torch.where(top > 0, top, 1.0) / CONDITION
    regular: Tensor = (u * s.maximum(floor)[:, None, :]) @ vh
    return regular


def _drawn_towards(prior: Float[Tensor, "T d d"], given: Moments) -> Float[Tensor, "T d d"]:
    """Return argmin E|A z_m - z_t|^2 + (ridge + p) |A - prior|^2."""
    d = given.gram.shape[-1]
    eye = torch.eye(d, dtype=given.gram.dtype, device=given.gram.device)
    size = given.gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-300)
    regular = given.gram + (RIDGE * size + given.prior)[:, None, None] * eye
    step: Tensor = torch.linalg.solve(regular, (given.cross - prior @ given.gram).mT)
    return prior + step.mT


FAMILIES: Mapping[str, Callable[[Moments], Float[Tensor, "T d d"]]] = {
    "orthogonal": orthogonal,
    "similarity": similarity,
    "scaling": scaling,
    "linear": linear,
}
"""Family name -> what solves it."""


@dataclass(frozen=True)
class Map:
    """z -> A z + b, in float64."""

    matrix: Float[Tensor, "d d"]
    offset: Float[Tensor, " d"]

    def __call__(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """Map each row, in the features' own type."""
        return features @ self.matrix.to(features).mT + self.offset.to(features)


def affine(merged: Float[Tensor, "N d"], finetuned: Float[Tensor, "N d"]) -> Map:
    """Return the best matrix and offset, with the ridge on the matrix alone."""
    z_m, z_t = merged.double(), finetuned.double()
    middle_m, middle_t = z_m.mean(dim=0), z_t.mean(dim=0)
    centred = moments(z_m - middle_m, z_t - middle_t)
    A = _drawn_towards(linear(moments(z_m, z_t)), centred)[0]
    return Map(A, middle_t - A @ middle_m)


def _through_the_origin(
    solve: Callable[[Moments], Float[Tensor, "T d d"]],
) -> Callable[[Float[Tensor, "N d"], Float[Tensor, "N d"]], Map]:
    def fit(merged: Float[Tensor, "N d"], finetuned: Float[Tensor, "N d"]) -> Map:
        A = solve(moments(merged, finetuned))[0]
        return Map(A, torch.zeros_like(A[0]))

    return fit


TABLE_1: Mapping[str, Callable[[Float[Tensor, "N d"], Float[Tensor, "N d"]], Map]] = {
    "affine": affine,
    "linear": _through_the_origin(linear),
    "invertible": _through_the_origin(invertible),
    "similarity": _through_the_origin(similarity),
    "orthogonal": _through_the_origin(orthogonal),
    "scaling": _through_the_origin(scaling),
}
"""The paper's families in the paper's order: merged and fine-tuned features -> the best map."""
