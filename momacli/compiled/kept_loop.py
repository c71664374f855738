"""Loops over arrays that Numba compiles once; later runs load their machine code without it.

To import Numba takes half a second, which is longer than many a merge.
"""

import ctypes
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.machine_code import linked

_NUMBERS = {int: "int64", np.uint64: "uint64", float: "float64", np.float32: "float32"}
_IN_C = {
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "float64": ctypes.c_double,
    "float32": ctypes.c_float,
}

BLOCK = 1 << 10
"""Entries of an array that a loop had best work on at once: what it sums up of them stays in the
processor's first cache, and it is vectorised."""

_OPTIONS = {"error_model": "numpy"}  # a division by zero is no branch

_IN_ANY_ORDER = {"fastmath": {"reassoc", "contract"}}

_FREEING = re.compile(r"^declare void @NRT_MemInfo_call_dtor\((\S+)\).*$", re.MULTILINE)
"""What frees an array: never called of those that belong to the caller."""


class KeptLoop:
    """A function that fills arrays, and returns a whole number or nothing.

    It takes contiguous arrays and numbers: int, float, np.uint64 or np.float32. It may call
    functions of this folder, and makes no arrays but by `scratch`. For each kind of
    arguments it is compiled anew; where the code cannot stand alone, Numba runs it.
    """

    def __init__(self, function: Callable[..., Any], *, in_any_order: bool = False):
        """Compile nothing yet.

        in_any_order: whether what the function itself sums up may be summed in another order,
            the same on processors of one kind, and products need not be rounded before that.
        """
        functools.update_wrapper(self, function)
        self._function = function
        self._options = {**_OPTIONS, **(_IN_ANY_ORDER if in_any_order else {})}
        self._codes: dict[tuple[object, ...], Callable[..., int | None]] = {}

    def __call__(self, *arguments: Any) -> int:
        """Run it. Raises TypeError for arguments of other kinds."""
        kinds = tuple([_kind(argument) for argument in arguments])
        code = self._codes.get(kinds)
        if code is None:
            code = self._codes[kinds] = _compiled(
                self._function, [*map(_name, kinds)], self._options
            )
        return code(*arguments) or 0


def scratch(size: int, kind: Any) -> Array:
    """An array [size] for the time of one call of a loop; on the stack, once it is compiled."""
    return np.empty(size, kind)


def _kind(argument: Any) -> object:
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise TypeError("an array is not contiguous")
        return argument.dtype, argument.ndim
    return type(argument)


def _name(kind: Any) -> str:
    """A kind of arguments in words: a number's type, and the number of dimensions of an array."""
    if isinstance(kind, tuple):
        dtype, ndim = kind
        return f"{dtype.name} {ndim}"
    if kind not in _NUMBERS:
        raise TypeError(f"a loop takes no {kind.__name__}")
    return _NUMBERS[kind]


def _compiled(
    function: Any, kinds: Sequence[str], options: Mapping[str, Any]
) -> Callable[..., int | None]:
    digest = hashlib.sha256(" ".join(kinds).encode()).hexdigest()
    name = f"{function.__name__}_{digest[:8]}"
    try:
        source = function.__code__.co_filename
        address = linked(name, lambda: _in_llvms_language(name, function, kinds, options), source)
    except Exception:  # whatever of Numba's own has changed, it can run what it compiles
        import numba

        called: Callable[..., int | None] = numba.njit(nogil=True, **options)(
            _resolved(function, on_stack=False)
        )
        return called
    return _callable(address, kinds)


def _callable(address: int, kinds: Sequence[str]) -> Callable[..., int]:
    """The code as Numba lays it out: where to put the result, what went wrong, then arguments.

    Of an array these are its owner and parent, of which there are none, its number of elements,
    the size of one, the address, the lengths and the strides.
    """
    fields: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    for kind in kinds:
        ndim = int(kind.split()[1]) if " " in kind else None
        fields += [_IN_C[kind]] if ndim is None else [ctypes.c_int64] * (5 + 2 * ndim)
    code = ctypes.CFUNCTYPE(ctypes.c_int32, *fields)(address)  # calls release the GIL

    def call(*arguments: Any) -> int:
        result, failure = ctypes.c_int64(), ctypes.c_void_p()
        values = list[Any]()
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                place = argument.__array_interface__["data"][0]
                values += (0, 0, argument.size, argument.itemsize, place)
                values += argument.shape + argument.strides
            else:
                values.append(argument)
        status = code(ctypes.addressof(result), ctypes.addressof(failure), *values)
        assert status in _DONE
        return result.value

    return call


_ARRAY = ("meminfo", "parent", "nitems", "itemsize", "data", "shape", "strides")
"""How Numba lays an array out."""

_DONE = (0, -2)
"""What Numba calls a return, and one of nothing."""


def _in_llvms_language(
    name: str, function: Any, kinds: Sequence[str], options: Mapping[str, Any]
) -> str:
    import numba

    signature = tuple(_in_numba(kind) for kind in kinds)
    alone = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = numba.njit(signature, **alone, **options)(_resolved(function, on_stack=True))
    made = compiled.overloads[signature]
    text: str = made.library.get_llvm_str().replace(made.fndesc.llvm_func_name, name)
    return _FREEING.sub(r"define internal void @NRT_MemInfo_call_dtor(\1 %0) { ret void }", text)


def _in_numba(kind: str) -> Any:
    """Numba's type. Raises TypeError where arrays are laid out otherwise than here."""
    import numba
    from numba.core.datamodel import default_manager

    if " " not in kind:
        return getattr(numba.types, kind)
    dtype, ndim = kind.split()
    array = numba.types.Array(getattr(numba.types, dtype), int(ndim), "C")
    if tuple(default_manager.lookup(array)._fields) != _ARRAY:
        raise TypeError("arrays are laid out otherwise")
    return array


def _resolved(function: Any, *, on_stack: bool) -> Any:
    """The same function, with the functions that it calls compiled by Numba."""
    import numba

    known, called = function.__globals__, function.__code__.co_names
    scope = {name: known[name] for name in called if name in known}
    for name, value in scope.items():
        if value is scratch and on_stack:
            from momacli.compiled.stack_array import stack_array

            scope[name] = stack_array
        elif isinstance(value, FunctionType):
            scope[name] = numba.njit(**_OPTIONS)(_resolved(value, on_stack=on_stack))
    return FunctionType(function.__code__, scope, function.__name__)
