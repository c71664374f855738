"""The format's types as NumPy has them, and the way between arrays and torch's tensors.

Merges of single entries compute in NumPy: to import torch takes longer than they do.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from momacli.checkpoint.escaping import shown
from momacli.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_NUMPY = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "C64": np.dtype(np.complex64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_CODES = {dtype: code for code, dtype in _NUMPY.items()}

_OPTIONS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_OPTIONS |= {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_INFINITE = 0x7F80
"""Bits of an infinite bfloat16 but its sign; those of NaN are above."""

_FEW = 1 << 16
"""Half-precision numbers that NumPy converts sooner than torch is imported."""


def is_held(code: str) -> bool:
    """Whether an array can hold the elements of a format code; not those of 4 or 6 bits."""
    return code in _NUMPY


def array_dtype(code: str, what: str) -> np.dtype[Any]:
    """NumPy's type of a format code. Raises CheckpointError naming `what` if there is none."""
    if code not in _NUMPY:
        raise CheckpointError(f"{what} has dtype {code}, which an array cannot hold")
    found: np.dtype[Any] = _NUMPY[code]
    return found


def parse_dtype(text: str) -> str:
    """The format's code of what a user calls a type: float32, bf16, ... Raises UsageError."""
    aliases = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
    name = aliases.get(text.lower(), text.lower())
    if name not in _OPTIONS:
        raise UsageError(
            f"unknown dtype {shown(text)}", hint=f"choose one of {', '.join(_OPTIONS)}"
        )
    return _OPTIONS[name]


def fill(out: Array, values: Array) -> None:
    """Convert values to the type of `out`, rounding to the nearest.

    NumPy takes half-precision numbers one by one, ten times as long as torch.
    """
    half = np.float16 in (out.dtype, values.dtype) and out.dtype != values.dtype
    if half and values.size > _FEW:
        as_tensor(out).copy_(as_tensor(values))
        return
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are looked for later
        np.copyto(out, values, casting="unsafe")


def converted(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return the values in another type, rounded to the nearest; themselves if it is theirs."""
    if values.dtype == dtype:
        return values
    result = np.empty(values.shape, dtype=dtype)
    fill(result, values)
    return result


def is_finite(values: Array) -> bool:
    """Whether no value is NaN or infinite.

    A finite sum of squares tells that at once. Else the extremes do: NaN is always one of them.
    """
    if values.size == 0:
        return True
    if values.dtype in (np.float32, np.float64) and values.flags.c_contiguous:
        flat = values.reshape(-1)
        with np.errstate(all="ignore"):
            if np.isfinite(flat.dot(flat)):
                return True
    if values.dtype == _BFLOAT16:
        return bool((values.view(np.uint16) & 0x7FFF).max() < _INFINITE)
    if values.dtype.kind == "V":  # ml_dtypes' own: reductions of them are slow
        return bool(np.isfinite(values).all())
    return bool(np.isfinite(values.max()) and np.isfinite(values.min()))


def count_changed(values: Array, before: Array) -> int:
    """How many values differ; both of one type. Zeros are equal whatever their sign."""
    if values.dtype != _BFLOAT16:
        return int(np.count_nonzero(values != before))
    new, old = values.view(np.uint16), before.view(np.uint16)
    differ = new != old
    differ &= ((new | old) & 0x7FFF) != 0
    return int(np.count_nonzero(differ))


def as_tensor(values: Array) -> "Tensor":
    """The same memory as a tensor."""
    import torch

    from momacli.checkpoint.dtypes import torch_dtype

    dtype = torch_dtype(_CODES[values.dtype], "the array")
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat).view(dtype).reshape(values.shape)


def as_array(values: "Tensor") -> Array:
    """The values of a tensor, in the same memory if it is contiguous and the processor's."""
    import torch

    from momacli.checkpoint.dtypes import dtype_code

    dtype = _NUMPY[dtype_code(values.dtype)]
    plain = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if not plain.numel():
        return np.empty(tuple(values.shape), dtype=dtype)
    found: Array = plain.reshape(-1).view(torch.uint8).numpy().view(dtype)
    return found.reshape(tuple(values.shape))
