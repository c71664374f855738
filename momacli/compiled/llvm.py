"""Functions in LLVM's language: how they begin, and loops in them."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

ADDRESS = ir.IntType(64)
"""Of addresses, and of what is counted."""


def begun(name: str) -> tuple[ir.Module, Any]:
    """A module with a function of two such numbers, and what writes it; it returns nothing."""
    module = ir.Module(name=name)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ADDRESS, ADDRESS]), name)
    return module, ir.IRBuilder(function.append_basic_block("entry"))


def repeated(
    builder: Any,
    values: Sequence[Any],
    times: Any,
    step: Callable[[Any, Sequence[Any]], list[Any]],
) -> list[Any]:
    """What becomes of values by a step that is taken so many times, given its number too."""
    before = builder.block
    loop, done = builder.append_basic_block("step"), builder.append_basic_block("done")
    zero, one = ir.Constant(ADDRESS, 0), ir.Constant(ADDRESS, 1)
    builder.cbranch(builder.icmp_signed(">", times, zero), loop, done)
    builder.position_at_end(loop)
    number, current = builder.phi(ADDRESS), [builder.phi(value.type) for value in values]
    new = step(number, current)
    end, following = builder.block, builder.add(number, one)
    builder.cbranch(builder.icmp_signed("<", following, times), loop, done)
    builder.position_at_end(done)
    last = [builder.phi(value.type) for value in values]
    for value, entered, again in zip(
        [number, *current, *last],
        [zero, *values, *values],
        [following, *new, *new],
        strict=True,
    ):
        value.add_incoming(entered, before)
        value.add_incoming(again, end)
    return last
