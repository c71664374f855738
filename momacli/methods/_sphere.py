"""Interpolation on a hypersphere, in the coefficients of the given vectors.

Whatever is computed from a few vectors by turning them towards each other is a linear
combination of them, and its coefficients depend on their inner products alone. So the large
tensors are read twice, once for the inner products and once for the combination, and all
geometry between is done in float64 on numbers the size of T x T.
"""

from typing import Literal

import numpy as np

from momacli.errors import UsageError
from momacli.shapes import Float

Center = Literal["base", "zero"]
"""Where the sphere is centred: "base" turns task vectors, "zero" turns the weights themselves."""

_BLOCK = 1 << 14  # entries of each vector that are held in float64 at a time, in the cache
_LARGE = 1 << 18  # entries of a tensor of models for which loading a compiled loop pays
_PARALLEL = 1 - 1e-12  # cosines above belong to angles where slerp and lerp agree to float32
_VANISHING = 1e-6  # length of a mean of unit vectors below which its direction is rounding


def inner_products(
    task_vectors: Float[np.ndarray, "T *shape"], base: Float[np.ndarray, "*shape"] | None = None
) -> Float[np.ndarray, "T T"]:
    """Return v_t . v_u in float64, where v_t = tau_t, or theta_0 + tau_t where a base is given."""
    T = task_vectors.shape[0]
    flat = task_vectors.reshape(T, task_vectors[0].size)
    if T == 2 and base is not None and flat.shape[1] >= _LARGE:
        return _products_of_two(flat, base.reshape(-1))
    total = np.zeros((T, T))
    for start in range(0, flat.shape[1], _BLOCK):
        v = flat[:, start : start + _BLOCK].astype(np.float64)
        if base is not None:
            v += base.reshape(-1)[start : start + _BLOCK]
        total += v @ v.T
    return total


def _products_of_two(
    vectors: Float[np.ndarray, "2 n"], base: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "2 2"]:
    """The same of two vectors, in one pass."""
    from momacli.compiled.sums import products_of_two

    found = np.empty(3)
    products_of_two(*map(np.ascontiguousarray, (*vectors, base)), found)
    return found[[0, 1, 1, 2]].reshape(2, 2)


def unit_products(
    products: Float[np.ndarray, "T T"],
) -> tuple[Float[np.ndarray, "T T"], Float[np.ndarray, " T"]]:
    """Return the cosines between the vectors, and 1 / |v_t|; both are 0 for a zero vector."""
    norms = np.sqrt(products.diagonal())
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return products * inverse[:, None] * inverse, inverse


def cosine_of(products: Float[np.ndarray, "2 2"]) -> Float[np.ndarray, ""]:
    """Return the cosine between two vectors; not a number where one is zero."""
    with np.errstate(invalid="ignore"):
        return np.asarray(products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]))


def slerp_coefficients(
    cosine: Float[np.ndarray, "*rows"], *, t: float, threshold: float
) -> Float[np.ndarray, "2 *rows"]:
    """Return (sin((1-t) theta), sin(t theta)) / sin theta; (1-t, t) where |cosine| > threshold.

    A cosine that is not a number, because a vector is zero, also gives (1-t, t).
    """
    curved = np.abs(cosine) <= min(threshold, _PARALLEL)
    theta = np.arccos(np.where(curved, cosine, 0.0))
    parts = np.sin(np.stack([(1 - t) * theta, t * theta])) / np.sin(theta)
    line = np.stack([np.full_like(theta, 1 - t), np.full_like(theta, t)])
    coefficients: np.ndarray = np.where(curved, parts, line)
    return coefficients


def mean_direction(
    cosines: Float[np.ndarray, "T T"], weights: Float[np.ndarray, " T"]
) -> Float[np.ndarray, " T"] | None:
    """Return a with sum_t a_t u_t the unit vector along sum_t w_t u_t; None where that vanishes."""
    length = np.sqrt(max(0.0, weights @ cosines @ weights))
    if length <= _VANISHING * np.abs(weights).sum():
        return None
    direction: np.ndarray = weights / length
    return direction


def shares(weights: Float[np.ndarray, " T"] | None, T: int) -> Float[np.ndarray, " T"]:
    """Return the weights divided by their sum, equal ones by default, in float64.

    Raises UsageError where they sum to zero.
    """
    if weights is None:
        equal: np.ndarray = np.full(T, 1 / T)
        return equal
    w = weights.astype(np.float64)
    if w.sum() == 0:
        raise UsageError(
            "the weights of the experts sum to zero", hint="only their ratios matter here"
        )
    share: np.ndarray = w / w.sum()
    return share


def combine(
    coefficients: Float[np.ndarray, "T ..."],
    task_vectors: Float[np.ndarray, "T *shape"],
    base: Float[np.ndarray, "*shape"] | None = None,
    *,
    lam: float = 1.0,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times sum_t c_t tau_t.

    Where a base is given it is lam times sum_t c_t (theta_0 + tau_t) - theta_0, summed as
    sum_t c_t tau_t + (sum_t c_t - 1) theta_0, so that no digit of a small tau is lost.

    coefficients: one per expert, or an array for each that broadcasts to a task vector.
    """
    c = coefficients.astype(task_vectors.dtype)
    excess = coefficients.sum(axis=0) - 1
    excess = np.where(np.abs(excess) < 1e-12, 0.0, excess)  # coefficients that sum to one
    if base is None or not excess.any():
        excess = None
    if c.ndim == 1:
        return _combined(c, task_vectors, excess, base, lam)
    merged: np.ndarray = np.zeros(task_vectors.shape[1:], dtype=task_vectors.dtype)
    for c_t, tau in zip(c, task_vectors, strict=True):
        merged += c_t * tau
    if base is not None and excess is not None:
        merged += excess.astype(base.dtype) * base
    merged *= lam
    return merged


def _combined(
    c: Float[np.ndarray, " T"],
    task_vectors: Float[np.ndarray, "T *shape"],
    excess: Float[np.ndarray, ""] | None,
    base: Float[np.ndarray, "*shape"] | None,
    lam: float,
) -> Float[np.ndarray, "*shape"]:
    """Return lam times sum_t c_t tau_t + excess * theta_0, a block in the cache at a time."""
    merged: np.ndarray = np.empty(task_vectors.shape[1:], dtype=task_vectors.dtype)
    flat, taus = merged.reshape(-1), task_vectors.reshape(len(c), merged.size)
    for start in range(0, merged.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        np.dot(c, taus[:, start : start + _BLOCK], out=block)
        if base is not None and excess is not None:
            block += excess.astype(base.dtype) * base.reshape(-1)[start : start + _BLOCK]
        if lam != 1:
            block *= lam
    return merged
