"""Model Stock (Jang et al. 2024, arXiv:2403.19522): the point nearest the experts' center.

theta_m = t * mean_t(theta_t) + (1 - t) * theta_0, t = T cos / (1 + (T - 1) cos), where cos is
the mean cosine between two task vectors of this layer: where experts agree, their average;
where they have nothing in common, the base.

A negative cosine counts as 0, so that t lies in [0, 1]; the formula would step away from the
experts, or to infinity at cos = -1/(T - 1). mergekit lets it, and its guard against division
by zero (1e-6) weakens the cosines of task vectors shorter than 1e-3. FusionBench averages
angles; cosines are averaged here. One expert alone is returned as it is.
"""

from typing import Any, Literal

import numpy as np

from momacli.methods._arrays import on_arrays
from momacli.methods._parts import Parts
from momacli.methods._rows import as_rows
from momacli.methods._sphere import in_parts_by_products, products_around
from momacli.methods._sums import OnePass, added_to_base
from momacli.shapes import Float

ELEMENTWISE = False

_CHUNK = 1 << 14  # entries per expert that are held in float64 at a time, in the cache


@on_arrays
def model_stock(
    task_vectors: Float[np.ndarray, "T *shape"],
    *,
    per: Literal["tensor", "row"] = "tensor",
) -> Float[np.ndarray, "*shape"]:
    """Return t times the mean of the task vectors, with t from their cosines.

    per: what has a t of its own; "tensor" is the authors' code, "row" (an output unit) is
        mergekit's filter_wise.
    """
    T, *shape = task_vectors.shape
    if T == 1:
        return np.array(task_vectors[0])
    rows = as_rows(task_vectors, per)
    _, count, width = rows.shape
    merged = np.empty((count, width), dtype=task_vectors.dtype)
    wide = max(1, _CHUNK // max(1, width))
    for first in range(0, count, wide):
        part = rows[:, first : first + wide]
        factor = _factor(_products(part)).astype(merged.dtype)
        for start in range(0, width, _CHUNK):
            total = part[:, :, start : start + _CHUNK].sum(axis=0)
            stop = start + total.shape[1]
            np.multiply(factor[:, None], total, out=merged[first : first + wide, start:stop])
    return merged.reshape(shape)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    per: Literal["tensor", "row"] = "tensor",
    products: Float[np.ndarray, "T T"] | None = None,
) -> OnePass:
    """Return theta_0 + what `model_stock` makes of the experts' task vectors, per "tensor"."""
    if per != "tensor":
        return theta_0, None
    if products is None:
        products = products_around("base", theta_0, thetas)
    return added_to_base(theta_0, thetas, None, float(_factor(products[None])[0]))


def in_parts(*, per: Literal["tensor", "row"] = "tensor", **_options: Any) -> Parts:
    """Return how parts of a tensor are merged: rows by themselves where those are told apart."""
    return in_parts_by_products("base") if per == "tensor" else Parts(rows=True)


def _products(rows: Float[np.ndarray, "T rows n"]) -> Float[np.ndarray, "rows T T"]:
    """Inner products of the experts' task vectors, row by row, in float64."""
    T, count, width = rows.shape
    products = np.zeros((count, T, T))
    for start in range(0, width, _CHUNK):
        x = rows[:, :, start : start + _CHUNK].astype(np.float64).transpose(1, 0, 2)
        products += x @ x.transpose(0, 2, 1)
    return products


def _factor(products: Float[np.ndarray, "rows T T"]) -> Float[np.ndarray, " rows"]:
    """Return t / T, from the mean cosine over all pairs; a zero vector has cosine 0 with all."""
    T = products.shape[1]
    norms = np.sqrt(products.diagonal(axis1=1, axis2=2))
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = products * scale[:, :, None] * scale[:, None, :]
    others = cosines.sum(axis=(1, 2)) - cosines.trace(axis1=1, axis2=2)
    cos = np.maximum(others / (T * (T - 1)), 0)
    factor: np.ndarray = cos / (1 + (T - 1) * cos)
    return factor
