"""Normalized-weight spherical interpolation (Goddard 2024, mergekit).

tau = sin((1-t) omega)/sin omega * tau_1 + sin(t omega)/sin omega * tau_2 with
t = w_2 / (w_1 + w_2), where omega is the angle between the two task vectors of one tensor
(center "base") or between the weights themselves (center "zero", mergekit without a base).
Parallel and zero vectors are interpolated linearly; for zero vectors mergekit takes the angle
to be 90 degrees.
"""

from typing import Any, Literal

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts
from momacli.methods._sphere import (
    Center,
    combine,
    combined_in_one_pass,
    cosine_of,
    in_parts_by_products,
    inner_products,
    slerp_coefficients,
)
from momacli.methods._sums import OnePass
from momacli.shapes import Float

ELEMENTWISE = False
MAX_EXPERTS = 2


@on_arrays
def nuslerp(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "base",
    per: Literal["tensor", "row", "column"] = "tensor",
    lam: float = 1.0,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times the point between two task vectors that their weights point to.

    base: theta_0 of this tensor; used with center "zero" only.
    weights: one per expert, default equal; only their ratio matters, and two that cancel count
        as equal (mergekit's rule).
    center: "base" interpolates task vectors, as mergekit does when it is given a base; "zero"
        interpolates weights.
    per: one angle for the whole "tensor" (mergekit's default), one per "row" (a vector along
        the last dimension; mergekit's nuslerp_flatten false) or one per "column" (along the
        first; its nuslerp_row_wise true). Tensors below two dimensions are taken whole.
    lam: factor on the result; 1 is mergekit's.

    Raises UsageError for more than two experts. A single one is returned as it is.
    """
    T = len(task_vectors)
    if T > MAX_EXPERTS:
        raise UsageError(
            f"nuslerp interpolates between at most two experts, found {T}",
            hint="multislerp and karcher take any number",
        )
    if T == 1:
        return combine(np.ones(1), task_vectors, lam=lam)
    origin = base if center == "zero" else None
    cosine = _cosine(task_vectors, origin, per)
    c = slerp_coefficients(cosine, t=_share_of_last(weights), threshold=1.0)
    return combine(c, task_vectors, origin, lam=lam)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "base",
    per: Literal["tensor", "row", "column"] = "tensor",
    lam: float = 1.0,
    products: Float[np.ndarray, "2 2"] | None = None,
) -> OnePass:
    """Return theta_0 + what `nuslerp` makes of the task vectors of two experts, per "tensor"."""
    if per != "tensor":
        return theta_0, None

    def coefficients(products: Float[np.ndarray, "2 2"]) -> Float[np.ndarray, " 2"]:
        return slerp_coefficients(cosine_of(products), t=_share_of_last(weights), threshold=1.0)

    return combined_in_one_pass(
        theta_0, thetas, coefficients, center=center, lam=lam, products=products
    )


def in_parts(
    *,
    center: Center = "base",
    per: Literal["tensor", "row", "column"] = "tensor",
    **_options: Any,
) -> Parts | None:
    """Return how parts of a tensor are merged: whole rows by themselves, columns not at all."""
    if per == "tensor":
        return in_parts_by_products(center)
    return Parts(rows=True) if per == "row" else None


def _share_of_last(weights: Float[np.ndarray, " 2"] | None) -> float:
    if weights is None or abs(float(weights.sum())) < 1e-6:
        return 0.5
    return float(weights[1] / weights.sum())


def _cosine(
    task_vectors: Float[np.ndarray, "2 *shape"], base: Float[np.ndarray, "*shape"] | None, per: str
) -> Float[np.ndarray, "..."]:
    """The cosine between the two vectors, or between each pair of rows or columns, kept dims."""
    if per == "tensor" or task_vectors.ndim < 3:
        products = inner_products(task_vectors, base)
        return cosine_of(products)
    v = task_vectors.astype(np.float64) + (0.0 if base is None else base.astype(np.float64))
    axis = -1 if per == "row" else 0
    squares = np.square(v).sum(axis=axis % (v.ndim - 1) + 1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a zero vector has no angle
        cosine: np.ndarray = v.prod(axis=0).sum(axis=axis, keepdims=True) / np.sqrt(
            squares.prod(axis=0)
        )
    return cosine
