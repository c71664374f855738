"""Safetensors files put together by hand, sound or not, and the files that are open."""

import json
from pathlib import Path
from typing import Any


def raw(header: bytes | str | dict[str, Any], data: bytes = b"") -> bytes:
    """A file of this header and this data, with the right header length before them."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data


def entry(
    dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any
) -> dict[str, Any]:
    """What a header says of one tensor; by default of two float32."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def open_files() -> int:
    """How many files this process has open; 0 where the system does not say."""
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.exists() else 0
