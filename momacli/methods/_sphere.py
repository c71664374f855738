"""Interpolation on a hypersphere, in the coefficients of the given vectors.

Whatever is computed from a few vectors by turning them towards each other is a linear
combination of them, and its coefficients depend on their inner products alone. So the large
tensors are read twice, once for the inner products and once for the combination, and all
geometry between is done in float64 on numbers the size of T x T.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.errors import UsageError

Center = Literal["base", "zero"]
"""Where the sphere is centred: "base" turns task vectors, "zero" turns the weights themselves."""

_BLOCK = 1 << 20  # entries held in float64 at a time
_PARALLEL = 1 - 1e-12  # cosines above belong to angles where slerp and lerp agree to float32
_VANISHING = 1e-6  # length of a mean of unit vectors below which its direction is rounding


def inner_products(
    task_vectors: Float[Tensor, "T *shape"], base: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, "T T"]:
    """Return v_t . v_u in float64, where v_t = tau_t, or theta_0 + tau_t where a base is given."""
    flat = task_vectors.reshape(task_vectors.shape[0], -1)
    theta_0 = torch.zeros_like(flat[0]) if base is None else base.reshape(-1)
    total = flat.new_zeros(flat.shape[0], flat.shape[0], dtype=torch.float64)
    for taus, origin in zip(
        torch.split(flat, _BLOCK, dim=1), torch.split(theta_0, _BLOCK), strict=True
    ):
        v = taus.double() + origin.double()
        total += v @ v.mT
    return total


def unit_products(
    products: Float[Tensor, "T T"],
) -> tuple[Float[Tensor, "T T"], Float[Tensor, " T"]]:
    """Return the cosines between the vectors, and 1 / |v_t|; both are 0 for a zero vector."""
    norms = products.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return products * inverse[:, None] * inverse, inverse


def slerp_coefficients(
    cosine: Float[Tensor, "*rows"], *, t: float, threshold: float
) -> Float[Tensor, "2 *rows"]:
    """Return (sin((1-t) theta), sin(t theta)) / sin theta; (1-t, t) where |cosine| > threshold.

    A cosine that is not a number, because a vector is zero, also gives (1-t, t).
    """
    linear = ~(cosine.abs() <= min(threshold, _PARALLEL))
    theta = torch.where(linear, 0.0, cosine).acos()
    parts = torch.stack([(1 - t) * theta, t * theta]).sin() / theta.sin()
    line = torch.stack([torch.full_like(theta, 1 - t), torch.full_like(theta, t)])
    return torch.where(linear, line, parts)


def mean_direction(
    cosines: Float[Tensor, "T T"], weights: Float[Tensor, " T"]
) -> Float[Tensor, " T"] | None:
    """Return a with sum_t a_t u_t the unit vector along sum_t w_t u_t; None where that vanishes."""
    length = (weights @ cosines @ weights).clamp(min=0).sqrt()
    if length <= _VANISHING * weights.abs().sum():
        return None
    return weights / length


def shares(
    weights: Float[Tensor, " T"] | None, products: Float[Tensor, "T T"]
) -> Float[Tensor, " T"]:
    """Return the weights divided by their sum, equal ones by default.

    Raises UsageError where they sum to zero.
    """
    if weights is None:
        return torch.full_like(products[0], 1 / products.shape[0])
    w = weights.to(products)
    if w.sum() == 0:
        raise UsageError(
            "the weights of the experts sum to zero", hint="only their ratios matter here"
        )
    return w / w.sum()


def combine(
    coefficients: Float[Tensor, "T ..."],
    task_vectors: Float[Tensor, "T *shape"],
    base: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return sum_t c_t tau_t, or sum_t c_t (theta_0 + tau_t) - theta_0 where a base is given.

    The second is summed as sum_t c_t tau_t + (sum_t c_t - 1) theta_0, so that no digit of a
    small tau is lost against theta_0.
    """
    c = coefficients.to(task_vectors.dtype)
    merged = torch.zeros_like(task_vectors[0])
    for c_t, tau in zip(c, task_vectors, strict=True):
        merged = merged + c_t * tau
    if base is None:
        return merged
    excess = coefficients.sum(dim=0) - 1
    excess = torch.where(excess.abs() < 1e-12, 0.0, excess)  # coefficients that sum to one
    return merged + excess.to(base.dtype) * base
