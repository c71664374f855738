"""Sums over the experts, in the processor's cache."""

import numpy as np
from jaxtyping import Float


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


def scaled(
    task_vectors: Float[np.ndarray, "T n"], weights: Float[np.ndarray, " T"] | None
) -> Float[np.ndarray, "T n"]:
    """Return w_t tau_t; the task vectors themselves where there are no weights."""
    if weights is None:
        return task_vectors
    weighed: np.ndarray = task_vectors * weights.astype(task_vectors.dtype)[:, None]
    return weighed
