"""Multi-SLERP (Goddard 2025, mergekit; goddard.blog/posts/multislerp-wow-what-a-cool-idea).

u_t = tau_t / |tau_t|, m = sum_t w_t u_t / |sum_t w_t u_t|, tau = (sum_t w_t |tau_t|) m,
with weights that sum to one.

Mergekit adds a step in the tangent space at m: the weighted mean of u_t - (u_t . m) m, then the
exponential map. That mean is sum_t w_t u_t without its part along m, which is nothing, for m is
its direction: the step moves m by rounding only and is left out here. Where the u_t cancel,
mergekit stops with an error (or, for two, interpolates linearly); here the result is the
weighted mean.
"""

from functools import partial
from typing import Any

import numpy as np

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


@on_arrays
def multislerp(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "base",
    lam: float = 1.0,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times the mean length along the mean direction of the experts.

    base: theta_0 of this tensor; used with center "zero" only.
    weights: one per expert, default equal; only their ratios matter, and their sum must not be
        zero.
    center: "base" takes directions of task vectors, as mergekit does when it is given a base;
        "zero" takes those of the weights.
    lam: factor on the result; 1 is mergekit's.
    """
    origin = base if center == "zero" else None
    c = mean_coefficients(inner_products(task_vectors, origin), weights)
    return combine(c, task_vectors, origin, lam=lam)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    weights: Float[np.ndarray, " T"] | None = None,
    center: Center = "base",
    lam: float = 1.0,
    products: Float[np.ndarray, "T T"] | None = None,
) -> OnePass:
    """Return theta_0 + what `multislerp` makes of the experts' task vectors."""
    coefficients = partial(mean_coefficients, weights=weights)
    return combined_in_one_pass(
        theta_0, thetas, coefficients, center=center, lam=lam, products=products
    )


def in_parts(*, center: Center = "base", **_options: Any) -> Parts:
    """Return how parts of a tensor are merged."""
    return in_parts_by_products(center)
