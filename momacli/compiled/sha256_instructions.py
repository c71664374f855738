"""SHA-256 (FIPS 180-4) of two streams at once, by the instructions that x86 has for it.

Each instruction waits for the one before it of the same stream, four cycles for two rounds of a
block, and a processor can begin one every other cycle: the second stream costs next to nothing.

Letters are those of the standard, section 6.2.2: a to h the working variables, w the message
schedule, k the constants. The instructions keep a, b, e, f in one register and c, d, g, h in
another, each from the last letter on.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from momacli.compiled.llvm import ADDRESS, begun, repeated
from momacli.compiled.sha256_constants import BLOCK, K

LANES = 2
"""Streams at once. Four do not fit in the sixteen registers there are."""

_WORD, _FOUR = ir.IntType(32), 4
_VECTOR = ir.VectorType(_WORD, _FOUR)
_BYTES = 16
"""Of four words."""


NAME = "compress_two"


def write() -> ir.Module:
    """Write the function of this name, which hashes blocks of two streams."""
    module, builder = begun(NAME)
    _Compression(builder).generate(*builder.function.args)
    builder.ret_void()
    return module


class _Compression:
    """Writes the code of it."""

    def __init__(self, builder: Any):
        self._builder = builder
        self._two_rounds = self._declared("x86.sha256rnds2", 3)
        self._schedule_1 = self._declared("x86.sha256msg1", 2)
        self._schedule_2 = self._declared("x86.sha256msg2", 2)
        self._swap_bytes = self._declared("bswap.v4i32", 1)

    def generate(self, lanes: Any, blocks: Any) -> None:
        """Load the states, loop over the blocks, store the states."""
        builder = self._builder
        places, data = [], []
        for lane in range(LANES):
            places.append(self._load(lanes, 16 * lane, ADDRESS))
            data.append(self._load(lanes, 16 * lane + 8, ADDRESS))
        first: list[Any] = []
        for place in places:
            a_to_d, e_to_h = self._load(place), self._load(place, _BYTES)
            first += [self._chosen(a_to_d, e_to_h, [5, 4, 1, 0])]
            first += [self._chosen(a_to_d, e_to_h, [7, 6, 3, 2])]

        def after_next(number: Any, states: Sequence[Any]) -> list[Any]:
            offset = builder.mul(number, ir.Constant(ADDRESS, BLOCK))
            return self._after_block(states, [builder.add(start, offset) for start in data])

        last = repeated(builder, first, blocks, after_next)
        for lane, place in enumerate(places):
            abef, cdgh = last[2 * lane : 2 * lane + 2]
            self._store(self._chosen(abef, cdgh, [3, 2, 7, 6]), place)
            self._store(self._chosen(abef, cdgh, [1, 0, 5, 4]), place, _BYTES)

    def _after_block(self, states: Sequence[Any], starts: Sequence[Any]) -> list[Any]:
        """The states after one block of each stream: four rounds of each in turn."""
        builder = self._builder
        current = list(states)
        w = [[self._words(start, 4 * i) for i in range(4)] for start in starts]
        for begin in range(0, len(K), _FOUR):
            k = ir.Constant(_VECTOR, [ir.Constant(_WORD, k) for k in K[begin : begin + _FOUR]])
            for lane in range(LANES):
                abef, cdgh = current[2 * lane : 2 * lane + 2]
                words = w[lane].pop(0)
                sums = builder.add(words, k)
                upper = self._chosen(sums, sums, [2, 3, 0, 0])
                after_two = builder.call(self._two_rounds, [cdgh, abef, sums])
                after_four = builder.call(self._two_rounds, [abef, after_two, upper])
                current[2 * lane : 2 * lane + 2] = [after_four, after_two]
                if begin + _BYTES < len(K):
                    w[lane].append(self._expanded(words, w[lane]))
        return [builder.add(old, new) for old, new in zip(states, current, strict=True)]

    def _expanded(self, oldest: Any, later: Sequence[Any]) -> Any:
        """The four words of the schedule that follow sixteen: the oldest four and the later."""
        builder = self._builder
        partly = builder.call(self._schedule_1, [oldest, later[0]])
        seven_back = self._chosen(later[1], later[2], [1, 2, 3, 4])
        return builder.call(self._schedule_2, [builder.add(partly, seven_back), later[2]])

    def _words(self, start: Any, number: int) -> Any:
        """Four words of a block, whose most significant byte comes first."""
        return self._builder.call(self._swap_bytes, [self._load(start, 4 * number)])

    def _chosen(self, one: Any, other: Any, words: Sequence[int]) -> Any:
        """Words of two vectors, counted through."""
        which = ir.Constant(_VECTOR, [ir.Constant(_WORD, word) for word in words])
        return self._builder.shuffle_vector(one, other, which)

    def _load(self, address: Any, offset: int = 0, kind: Any = _VECTOR) -> Any:
        """What is in memory, wherever it begins."""
        loaded = self._builder.load(self._pointer(address, offset, kind))
        loaded.align = 1
        return loaded

    def _store(self, value: Any, address: Any, offset: int = 0) -> None:
        self._builder.store(value, self._pointer(address, offset, value.type)).align = 1

    def _pointer(self, address: Any, offset: int, kind: Any) -> Any:
        place = self._builder.add(address, ir.Constant(ADDRESS, offset))
        return self._builder.inttoptr(place, kind.as_pointer())

    def _declared(self, name: str, arguments: int) -> Any:
        """A function of LLVM's own on four words."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * arguments)
        return ir.Function(self._builder.module, kind, f"llvm.{name}")
