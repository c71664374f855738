"""Interpolation on a hypersphere, in the coefficients of the given vectors.

Whatever is computed from a few vectors by turning them towards each other is a linear
combination of them, and its coefficients depend on their inner products alone. So the large
tensors are read twice, once for the inner products and once for the combination, and all
geometry between is done in float64 on numbers the size of T x T.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from momacli.errors import UsageError
from momacli.methods._parts import Parts, TensorParts
from momacli.methods._sums import OnePass, added_to_base
from momacli.shapes import Float

Center = Literal["base", "zero"]
"""Where the sphere is centred: "base" turns task vectors, "zero" turns the weights themselves."""

_LARGE = 1 << 18  # entries of a tensor of models for which loading a compiled loop pays
_PARALLEL = 1 - 1e-12  # cosines above belong to angles where slerp and lerp agree to float32
_VANISHING = 1e-6  # length of a mean of unit vectors below which its direction is rounding


def inner_products(
    task_vectors: Float[np.ndarray, "T *shape"], base: Float[np.ndarray, "*shape"] | None = None
) -> Float[np.ndarray, "T T"]:
    """Return v_t . v_u in float64, where v_t = tau_t, or theta_0 + tau_t where a base is given."""
    T = task_vectors.shape[0]
    flat = task_vectors.reshape(T, task_vectors[0].size)
    origin = None if base is None else base.reshape(-1)
    if flat.shape[1] >= _LARGE:
        return compiled_products(flat, plus=origin)
    v = flat.astype(np.float64)
    if origin is not None:
        v += origin
    products: np.ndarray = v @ v.T
    return products


def compiled_products(
    vectors: Float[np.ndarray, "T n"],
    *,
    plus: Float[np.ndarray, " n"] | None = None,
    minus: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "T T"]:
    """Return v_t . v_u in float64, in one pass.

    plus: is added to every vector, in float64; or minus: is subtracted in the type of the
        vectors, as a base is to have task vectors.
    """
    from momacli.compiled.products import WIDTH, multiply_all

    rows, T = np.ascontiguousarray(vectors), len(vectors)
    origin = plus if minus is None else minus
    factor = 0 if origin is None else (1 if minus is None else -1)
    even = T + T % 2
    held, found = np.zeros((even, WIDTH)), np.empty((even, even))
    beside = rows[0] if origin is None else np.ascontiguousarray(origin)
    multiply_all(rows, beside, factor, held, found)
    lower = np.tril(found[:T, :T])
    products: np.ndarray = lower + np.tril(lower, -1).T
    return products


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


def mean_coefficients(
    products: Float[np.ndarray, "T T"],
    weights: Float[np.ndarray, " T"] | None,
    turned: Callable[..., Float[np.ndarray, " T"]] = lambda m, *_: m,
) -> Float[np.ndarray, " T"]:
    """Return c with sum_t c_t v_t the mean length of the vectors along their mean direction.

    turned: makes another direction of that, of the cosines, and of the weights, which are 0 for
        zero vectors; directions tell how much of each unit vector they have.

    Where the directions cancel, the coefficients are the weights.
    """
    cosines, inverse_norms = unit_products(products)
    w = shares(weights, len(products))
    m = mean_direction(cosines, w)
    if m is None:
        return w
    length = (w * np.sqrt(products.diagonal())).sum()
    c: np.ndarray = length * turned(m, cosines, w * (inverse_norms > 0)) * inverse_norms
    return c


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
    merged: np.ndarray = np.zeros(task_vectors.shape[1:], dtype=task_vectors.dtype)
    for c_t, tau in zip(c, task_vectors, strict=True):
        merged += c_t * tau
    excess = _excess(coefficients)
    if base is not None and excess.any():
        merged += excess.astype(base.dtype) * base
    merged *= lam
    return merged


def products_around(
    center: Center, theta_0: Float[np.ndarray, " n"], thetas: Float[np.ndarray, "T n"]
) -> Float[np.ndarray, "T T"]:
    """Return the inner products, in float64, of the vectors from the center to the experts.

    Those of a tensor are the sum of those of its pieces.
    """
    return compiled_products(thetas, minus=theta_0 if center == "base" else None)


def in_parts_by_products(center: Center) -> Parts:
    """How parts of a tensor are merged by the inner products of the whole, in a compiled pass."""

    def measure(tensor: TensorParts) -> dict[str, Float[np.ndarray, "T T"]]:
        products: Float[np.ndarray, "T T"] | None = None
        for _, block in tensor.blocks():
            assert block.thetas is not None
            of_it = products_around(center, block.theta_0, block.thetas)
            products = of_it if products is None else products + of_it
        assert products is not None
        return {"products": products}

    return Parts(measure, compiled=True)


def combined_in_one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    coefficients: Callable[[Float[np.ndarray, "T T"]], Float[np.ndarray, " T"]],
    *,
    center: Center,
    lam: float = 1.0,
    products: Float[np.ndarray, "T T"] | None = None,
) -> OnePass:
    """Return theta_0 + what `combine` makes of the experts' task vectors.

    coefficients: of the inner products of the vectors that start at the center.
    products: these, of the whole tensor, where a piece of it is given.
    """
    c = coefficients(products_around(center, theta_0, thetas) if products is None else products)
    more = float(_excess(c)) if center == "zero" else 0.0
    return added_to_base(theta_0, thetas, c, lam, more=more)


def _excess(coefficients: Float[np.ndarray, "T ..."]) -> Float[np.ndarray, "..."]:
    """Return how much the coefficients sum to beyond one; 0 where that is rounding."""
    excess = coefficients.sum(axis=0) - 1
    small: np.ndarray = np.where(np.abs(excess) < 1e-12, 0.0, excess)
    return small
