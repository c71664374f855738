"""Task vectors seen as rows, for methods that select within each row."""

import math
from typing import Any, Literal, TypeVar

Per = Literal["tensor", "row"]
Stack = TypeVar("Stack", bound=Any)
"""A tensor or an array."""


def as_rows(task_vectors: Stack, per: Per) -> Stack:
    """View task vectors [T, *shape] as [T, rows, n].

    per "tensor": one row with everything in it. "row": one per output unit, shape[0] of them;
    a tensor of fewer than two dimensions is still one row.
    """
    T, *shape = task_vectors.shape
    rows = shape[0] if per == "row" and len(shape) > 1 else 1
    viewed: Stack = task_vectors.reshape(T, rows, math.prod(shape) // max(1, rows))
    return viewed
