"""Task vectors seen as rows, for methods that select within each row."""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Per = Literal["tensor", "row"]


def as_rows(task_vectors: Float[Tensor, "T *shape"], per: Per) -> Float[Tensor, "T rows n"]:
    """View task vectors as [T, rows, n].

    per "tensor": one row with everything in it. "row": one per output unit, shape[0] of them;
    a tensor of fewer than two dimensions is still one row.
    """
    T, *shape = task_vectors.shape
    rows = shape[0] if per == "row" and len(shape) > 1 else 1
    return task_vectors.reshape(T, rows, math.prod(shape) // max(1, rows))
