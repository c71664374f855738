"""The format's names for types and torch's."""

import torch

from momacli.errors import CheckpointError, OutputError

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_CODES = {dtype: code for code, dtype in _TORCH.items()}


def torch_dtype(code: str, what: str) -> torch.dtype:
    """The torch type of a format code. Raises CheckpointError naming `what` if there is none."""
    if code not in _TORCH:
        raise CheckpointError(f"{what} has dtype {code}, which torch cannot hold")
    return _TORCH[code]


def dtype_code(dtype: torch.dtype) -> str:
    """The format's code of a torch type. Raises OutputError if there is none."""
    if dtype not in _CODES:
        raise OutputError(f"a safetensors file cannot hold {dtype}")
    return _CODES[dtype]
