"""Karcher mean on the sphere (Karcher 1977, CPAM 30(5); merged in arXiv:2603.04972 and mergekit).

The unit vector m that minimizes sum_t w_t angle(m, u_t)^2 over u_t = theta_t / |theta_t|, found by
m <- exp_m(sum_t w_t log_m(u_t)), with the length sum_t w_t |theta_t|.

For two experts it is slerp. Mergekit stops after 10 steps or at 1e-5; a step costs T^2 operations
here, so the default runs to convergence. Zero vectors have no direction and only shorten the
length. Where the u_t cancel there is no single minimum, and the result is the weighted mean
(mergekit starts from whichever expert comes first).
"""

from functools import partial
from typing import Any

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts
from momacli.methods._sphere import (
    Center,
    combine,
    combined_in_one_pass,
    in_parts_by_products,
    inner_products,
    mean_coefficients,
)
from momacli.methods._sums import OnePass
from momacli.shapes import Float

ELEMENTWISE = False

_OPPOSITE = -1 + 1e-8  # an expert on the far side of the sphere pulls in no direction


@on_arrays
def karcher(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "zero",
    max_steps: int = 100,
    tol: float = 1e-9,
    lam: float = 1.0,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times the step from the base to the Karcher mean of the experts.

    base: theta_0 of this tensor; used with center "zero" only.
    weights: one per expert, default equal; not negative, and only their ratios matter.
    center: "zero" averages the directions of the weights, as mergekit does; "base" those of the
        task vectors.
    max_steps: at most so many steps; mergekit's is 10.
    tol: stops when a step turns by less, in radians; mergekit's is 1e-5.
    lam: factor on the result; 1 is mergekit's.

    Raises UsageError for negative weights.
    """
    origin = base if center == "zero" else None
    c = _coefficients(inner_products(task_vectors, origin), weights, max_steps=max_steps, tol=tol)
    return combine(c, task_vectors, origin, lam=lam)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "zero",
    max_steps: int = 100,
    tol: float = 1e-9,
    lam: float = 1.0,
    products: Float[np.ndarray, "T T"] | None = None,
) -> OnePass:
    """Return theta_0 + what `karcher` makes of the experts' task vectors."""
    coefficients = partial(_coefficients, weights=weights, max_steps=max_steps, tol=tol)
    return combined_in_one_pass(
        theta_0, thetas, coefficients, center=center, lam=lam, products=products
    )


def in_parts(*, center: Center = "zero", **_options: Any) -> Parts:
    """Return how parts of a tensor are merged."""
    return in_parts_by_products(center)


def _coefficients(
    products: Float[np.ndarray, "T T"],
    weights: Float[np.ndarray, " T"] | None,
    *,
    max_steps: int,
    tol: float,
) -> Float[np.ndarray, " T"]:
    """Return how much of each vector there is in the result, from their inner products."""
    if weights is not None and bool((weights < 0).any()):
        raise UsageError("karcher needs weights that are not negative")
    return mean_coefficients(products, weights, partial(_descend, max_steps=max_steps, tol=tol))


def _descend(
    m: Float[np.ndarray, " T"],
    cosines: Float[np.ndarray, "T T"],
    weights: Float[np.ndarray, " T"],
    *,
    max_steps: int,
    tol: float,
) -> Float[np.ndarray, " T"]:
    """Turn the unit vector sum_t m_t u_t until the directions to the u_t balance."""
    alpha = weights / weights.sum()
    for _ in range(max_steps):
        dots = (cosines @ m).clip(-1, 1)
        theta = np.arccos(dots)
        stretch = np.divide(theta, np.sin(theta), out=np.ones_like(theta), where=dots < 1)
        pull = np.where(dots > _OPPOSITE, alpha * stretch, 0.0)
        tangent = pull - (pull @ dots) * m
        angle = np.sqrt(max(0.0, tangent @ cosines @ tangent))
        if angle < tol:
            break
        m = np.cos(angle) * m + np.sin(angle) / angle * tangent
        m = m / np.sqrt(m @ cosines @ m)
    return m
