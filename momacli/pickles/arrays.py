"""NumPy's arrays in a pickle, which some tools save in the place of tensors."""

from math import prod

from momacli.checkpoint.header import DTYPE_BITS
from momacli.pickles.rebuild import naturals
from momacli.pickles.values import Global, Instance, Storage, TensorView, Unsupported
from momacli.pickles.window import MalformedError, Window, window_of

_DTYPES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "c8": "C64", "i8": "I64", "i4": "I32", "i2": "I16",
    "i1": "I8", "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL",
}  # fmt: skip
"""NumPy's short names of types, and the format's codes."""

_BIG = ">"


def array_view(value: object) -> TensorView | Unsupported | None:
    """The tensor that an array is, or None for anything else. Raises MalformedError."""
    if not isinstance(value, Instance) or value.kind is None:
        return None
    if value.view is None:
        value.view = _view(value, value.kind)
    return value.view if isinstance(value.view, TensorView | Unsupported) else None


def _view(value: Instance, kind: Global) -> TensorView | Unsupported | None:
    if kind.module.split(".")[0] != "numpy":
        return None
    if kind.name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, is_fortran, content = value.state  # as ndarray.__reduce__ has it
    elif kind.name == "_frombuffer" and len(value.arguments) == 4:
        content, dtype, shape, order = value.arguments
        is_fortran = order == "F"
    else:
        return None
    code = _code(dtype)
    if code is None:
        return Unsupported("an array of a type without a form in safetensors")
    sizes = naturals(shape)
    return _laid_out(_bytes(content), code, sizes, is_fortran=bool(is_fortran))


def _laid_out(
    content: Window, code: str, sizes: tuple[int, ...], *, is_fortran: bool
) -> TensorView:
    width = DTYPE_BITS[code] // 8
    if content.size != prod(sizes) * width:
        raise MalformedError(f"an array {list(sizes)} in it has {content.size} bytes")
    steps: list[int] = []
    step = 1
    for size in sizes if is_fortran else reversed(sizes):
        steps.append(step)
        step *= size
    stride = tuple(steps if is_fortran else reversed(steps))
    return TensorView(Storage(content.size, width, code, content), code, 0, sizes, stride)


def _code(dtype: object) -> str | None:
    """The format's code of a dtype; None where there is none, as for big-endian numbers."""
    if not isinstance(dtype, Instance) or dtype.kind is None or dtype.kind.name != "dtype":
        return None
    name = dtype.arguments[0] if dtype.arguments else None
    big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == _BIG
    return _DTYPES.get(name) if isinstance(name, str) and not big else None


def _bytes(content: object) -> Window:
    if isinstance(content, Window):
        return content
    if isinstance(content, bytes):
        return window_of(content)
    raise MalformedError("an array in it has no bytes")
