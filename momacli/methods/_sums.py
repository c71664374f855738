"""Sums over the experts, in the processor's cache."""

import numpy as np

from momacli.shapes import Float


def weighted_sum(
    task_vectors: Float[np.ndarray, "T n"],
    weights: Float[np.ndarray, " T"] | None,
    lam: float,
) -> Float[np.ndarray, " n"]:
    """Return lam * sum_t w_t tau_t, in the type of the task vectors; every w_t is 1 by default."""
    weighed = task_vectors if weights is None else scaled(task_vectors, weights)
    total: np.ndarray = weighed.sum(axis=0)
    total *= task_vectors.dtype.type(lam)
    return total


OnePass = tuple[Float[np.ndarray, " n"], int | None]
"""What a method merges into the base, and how many entries differ from it; None if one of them,
of the base or of an expert is not finite, or its options ask for more than a pass: then the method
itself is asked."""


def added_to_base(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    weights: Float[np.ndarray, " T"] | None,
    lam: float,
    *,
    more: float = 0.0,
) -> OnePass:
    """Return theta_0 + lam * sum_t w_t (theta_t - theta_0), as `weighted_sum` has it bit for bit.

    more: how much of theta_0 to add to the sum.

    n must not be 1: NumPy adds up the experts of a single entry in another order.
    """
    from momacli.compiled.sums import add_weighted_sum

    kind = theta_0.dtype
    factors = np.ones(len(thetas), kind) if weights is None else weights.astype(kind)
    merged = np.empty_like(theta_0)
    changed = add_weighted_sum(theta_0, thetas, factors, more, float(lam), merged)
    return merged, None if changed < 0 else changed


def scaled(
    task_vectors: Float[np.ndarray, "T n"], weights: Float[np.ndarray, " T"] | None
) -> Float[np.ndarray, "T n"]:
    """Return w_t tau_t; the task vectors themselves where there are no weights."""
    if weights is None:
        return task_vectors
    weighed: np.ndarray = task_vectors * weights.astype(task_vectors.dtype)[:, None]
    return weighed
