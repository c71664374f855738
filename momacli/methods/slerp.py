"""Spherical linear interpolation (Shoemake 1985, SIGGRAPH 19(3); as merged by mergekit).

theta_m = sin((1-t) omega)/sin omega * theta_a + sin(t omega)/sin omega * theta_b, where omega is
the angle between the weights theta_a and theta_b of one tensor, not between task vectors.
With one expert theta_a is the base; with two, theta_a is the first.

Shoemake interpolates unit vectors. Here, as in mergekit, the weights keep their lengths, and
vectors closer than `dot_threshold` are interpolated linearly. A zero vector has no angle to
anything: it too is interpolated linearly, where mergekit takes the angle to be 90 degrees.
"""

from functools import partial
from typing import Any

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts
from momacli.methods._sphere import (
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
ORDERED = True
MAX_EXPERTS = 2


@on_arrays
def slerp(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    base: Float[np.ndarray, "*shape"],
    t: float = 0.5,
    dot_threshold: float = 0.9995,
) -> Float[np.ndarray, "*shape"]:
    """Return the point at t on the arc from the base to the expert, or between two experts.

    base: theta_0 of this tensor.
    t: 0 is the base or the first expert, 1 the last expert; 0.5 is halfway (mergekit has no
        default).
    dot_threshold: cosine above which the arc is taken as straight; 0.9995 is mergekit's, which
        holds for most fine-tuned experts of one base. 1 follows the arc at every angle.

    Raises UsageError for more than two experts.
    """
    T = len(task_vectors)
    if T > MAX_EXPERTS:
        raise UsageError(
            f"slerp interpolates between at most two experts, found {T}",
            hint="multislerp and karcher take any number",
        )
    if T == 1:  # the base is an expert that has not moved
        task_vectors = np.concatenate([np.zeros_like(task_vectors), task_vectors])
    c = _coefficients(inner_products(task_vectors, base), t, dot_threshold)
    return combine(c, task_vectors, base)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    t: float = 0.5,
    dot_threshold: float = 0.9995,
    products: Float[np.ndarray, "2 2"] | None = None,
) -> OnePass:
    """Return theta_0 + what `slerp` makes of the task vectors of two experts."""
    coefficients = partial(_coefficients, t=t, dot_threshold=dot_threshold)
    return combined_in_one_pass(theta_0, thetas, coefficients, center="zero", products=products)


def in_parts(**_options: Any) -> Parts:
    """Return how parts of a tensor are merged."""
    return in_parts_by_products("zero")


def _coefficients(
    products: Float[np.ndarray, "2 2"], t: float, dot_threshold: float
) -> Float[np.ndarray, " 2"]:
    """Return how much of each vector there is in the result, from their inner products."""
    return slerp_coefficients(cosine_of(products), t=t, threshold=dot_threshold)
