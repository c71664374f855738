"""The format's names for types and torch's."""

import torch

from momacli.checkpoint.escaping import shown
from momacli.errors import CheckpointError, OutputError, UsageError

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
}
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    _TORCH["F8_E8M0"] = torch.float8_e8m0fnu
_CODES = {dtype: code for code, dtype in _TORCH.items()}
_OPTIONS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def is_held(code: str) -> bool:
    """Whether a torch tensor can hold the elements of a format code; not those of 4 or 6 bits."""
    return code in _TORCH


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


def parse_dtype(text: str) -> str:
    """The format's code of what a user calls a type: float32, bf16, ... Raises UsageError."""
    aliases = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
    name = aliases.get(text.lower(), text.lower())
    if name not in _OPTIONS:
        raise UsageError(
            f"unknown dtype {shown(text)}", hint=f"choose one of {', '.join(_OPTIONS)}"
        )
    return _OPTIONS[name]
