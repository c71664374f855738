"""Methods written in NumPy, which take torch's tensors too and then return one."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast, overload, runtime_checkable

import numpy as np

from momacli.checkpoint.arrays import Array, as_array, as_tensor

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Merge(Protocol):
    """A merge of task vectors [T, *shape] to one of [*shape], of the kind they are."""

    takes_arrays: bool  # which is how the engine knows

    @overload
    def __call__(self, task_vectors: "Tensor", **options: Any) -> "Tensor": ...

    @overload
    def __call__(self, task_vectors: Array, **options: Any) -> Array: ...


def on_arrays(function: Callable[..., Array]) -> Merge:
    """Let a function of arrays take tensors, the options among them."""

    @functools.wraps(function)
    def merge(task_vectors: Any, **options: Any) -> Any:
        if isinstance(task_vectors, np.ndarray):
            return np.asarray(function(task_vectors, **options))
        plain = {key: _plain(value) for key, value in options.items()}
        merged = np.asarray(function(as_array(task_vectors), **plain))
        return as_tensor(merged).to(task_vectors.device)

    made = cast("Merge", merge)
    made.takes_arrays = True
    return made


def on_entries(function: Callable[..., Array]) -> Merge:
    """Like `on_arrays`, for a function of [T, n] that treats each entry by itself."""

    @functools.wraps(function)
    def flat(task_vectors: Array, **options: Any) -> Array:
        merged = function(task_vectors.reshape(len(task_vectors), -1), **options)
        shaped: Array = merged.reshape(task_vectors.shape[1:])
        return shaped

    return on_arrays(flat)


def _plain(value: Any) -> Any:
    return as_array(value) if type(value).__module__ == "torch" else value
