"""Loops over single entries of trained numbers, compiled: one pass where NumPy takes a dozen.

Numba keeps the machine code beside this file or in the user's cache, so that it is compiled
once. The loops are short enough to stay in the processor's first cache and to be vectorised.
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np

from momacli.checkpoint.arrays import Array

_Loop = TypeVar("_Loop", bound=Callable[..., object])

_BLOCK = 1 << 10
"""Entries whose sums are in the cache at once."""


def _compiled(loop: _Loop) -> _Loop:
    options = {"nogil": True, "error_model": "numpy"}  # a division by zero is no branch
    try:
        compiled: _Loop = numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # there is no place to keep it
        compiled = numba.njit(**options)(loop)
    return compiled


@_compiled
def adam(
    values: Array, mean: Array, square: Array, gradient: Array, rate: float, epsilon: float
) -> None:
    """Move values by one step of Adam (Kingma and Ba 2015) and renew both moments, all [n].

    rate, epsilon: with what the moments' bias asks for in them.
    """
    kind = values.dtype.type
    new_mean, new_square, step, floor = kind(0.1), kind(0.001), kind(rate), kind(epsilon)
    for i in range(values.shape[0]):
        mean[i] += new_mean * (gradient[i] - mean[i])
        square[i] += new_square * (gradient[i] * gradient[i] - square[i])
        values[i] -= step * mean[i] / (np.sqrt(square[i]) + floor)


@_compiled
def product_of_three(a: Array, b: Array, c: Array) -> float:
    """The sum of a * b * c over all entries, [n] each."""
    total = 0.0
    for start in range(0, a.shape[0], _BLOCK):
        stop = min(start + _BLOCK, a.shape[0])
        part = a.dtype.type(0)
        for i in range(start, stop):
            part += a[i] * b[i] * c[i]
        total += part
    return total


@_compiled
def adam_of_mask(
    x: Array,
    mean: Array,
    square: Array,
    gradient: Array,
    tau: Array,
    s: Array,
    unscale: float,
    offset: float,
    factor: float,
    rate: float,
    epsilon: float,
) -> None:
    """Move the logits x of a relaxed mask s, with `unscale * gradient` by what s * tau is added to.

    dL/dx = (unscale * gradient * tau - offset) s (1 - s) factor; the rest is as in `adam`.
    """
    kind = x.dtype.type
    new_mean, new_square, one = kind(0.1), kind(0.001), kind(1)
    down, less, times, step, floor = (
        kind(unscale), kind(offset), kind(factor), kind(rate), kind(epsilon),
    )  # fmt: skip
    for i in range(x.shape[0]):
        slope = (down * gradient[i] * tau[i] - less) * s[i] * (one - s[i]) * times
        mean[i] += new_mean * (slope - mean[i])
        square[i] += new_square * (slope * slope - square[i])
        x[i] -= step * mean[i] / (np.sqrt(square[i]) + floor)
