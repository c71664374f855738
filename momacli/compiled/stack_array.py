"""Arrays on the stack for code that Numba compiles: the compiler knows that nothing else is there.

So it vectorises loops over them, and the code needs nobody to allocate memory.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

_LINE = 64
"""Bytes that the cache holds together."""

_APART = 208
"""Entries between two arrays: where several begin at the same place of their pages, processors
take what is stored in one for what is loaded from another, and wait."""


def _stack_array(_typing: Any, size: Any, kind: Any) -> Any:
    made = types.Array(kind.dtype, 1, "C")

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        length = context.get_constant(types.intp, size.literal_value)
        item = context.get_data_type(kind.dtype)
        apart = context.get_constant(types.intp, size.literal_value + _APART)
        place = cgutils.alloca_once(builder, item, size=apart)
        place.align = _LINE
        width = context.get_constant(types.intp, context.get_abi_sizeof(item))
        array = context.make_array(made)(context, builder)
        arrayobj.populate_array(
            array, data=place, shape=[length], strides=[width], itemsize=width, meminfo=None
        )
        return array._getvalue()

    return made(size, kind), generate


stack_array: Any = intrinsic(prefer_literal=True)(_stack_array)
"""Makes an array [size] of a kind of numbers, not filled; size is written in the code."""
