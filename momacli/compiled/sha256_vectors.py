"""SHA-256 (FIPS 180-4) of eight streams at once, one in each lane of vector registers.

Letters are those of the standard, section 6.2.2: a to h the working variables, w the message
schedule, k the constants.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from momacli.compiled.llvm import ADDRESS, begun, repeated
from momacli.compiled.sha256_constants import BLOCK, K

LANES = 8
"""Streams at once: as many as there are words in a state, so that both turn into each other."""

_ROUNDS = 16
"""Rounds of a block that are written out: as many as it has words."""

_WORD, _VECTOR = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)


NAME = "compress_eight"


def write() -> ir.Module:
    """Write the function of this name, which hashes blocks of eight streams."""
    module, builder = begun(NAME)
    _Compression(builder).generate(*builder.function.args)
    builder.ret_void()
    return module


class _Compression:
    """Writes the code of it."""

    def __init__(self, builder: Any):
        self._builder = builder
        self._rotate = self._declared("fshr", 3)
        self._swap_bytes = self._declared("bswap", 1)

    def generate(self, lanes: Any, blocks: Any) -> None:
        """Load the states, loop over the blocks, store the states."""
        builder = self._builder
        table = [
            self._load(builder.add(lanes, ir.Constant(ADDRESS, 8 * i)), ADDRESS)
            for i in range(2 * LANES)
        ]
        places, data = table[0::2], table[1::2]

        def after_next(number: Any, state: Sequence[Any]) -> list[Any]:
            offset = builder.mul(number, ir.Constant(ADDRESS, BLOCK))
            return self._after_block(state, [builder.add(start, offset) for start in data])

        first = self._transposed([self._load(place) for place in places])
        last = repeated(builder, first, blocks, after_next)
        for place, words in zip(places, self._transposed(last), strict=True):
            builder.store(words, builder.inttoptr(place, _VECTOR.as_pointer())).align = 4

    def _after_block(self, state: Sequence[Any], starts: Sequence[Any]) -> list[Any]:
        """The state after one block of each stream.

        Sixteen rounds at a time: their code stays in the processor's cache of decoded
        instructions, and their values in its registers.
        """
        add, sixteen = self._builder.add, ir.Constant(ADDRESS, _ROUNDS)

        def after_more(number: Any, values: Sequence[Any]) -> list[Any]:
            w = list(values[LANES:])
            first = add(self._builder.mul(number, sixteen), sixteen)
            return self._rounds(values[:LANES], w, first, expand=True) + w

        w = self._words(starts)
        begun = self._rounds(state, w, ir.Constant(ADDRESS, 0), expand=False)
        more = ir.Constant(ADDRESS, len(K) // _ROUNDS - 1)
        last = repeated(self._builder, begun + w, more, after_more)
        return [add(old, new) for old, new in zip(state, last[:LANES], strict=True)]

    def _rounds(self, state: Sequence[Any], w: list[Any], first: Any, *, expand: bool) -> list[Any]:
        """The state after rounds from `first` on, by the 16 latest words of the schedule.

        expand: whether each word is replaced by the one 16 rounds later before it is used.
        """
        add, and_, xor = self._builder.add, self._builder.and_, self._builder.xor
        a, b, c, d, e, f, g, h = state
        differed = xor(b, c)
        for t in range(_ROUNDS):
            if expand:
                sigma_0 = self._mixed(w[t - 15], (7, 18), shift=3)
                sigma_1 = self._mixed(w[t - 2], (17, 19), shift=10)
                w[t] = add(add(w[t], sigma_0), add(w[t - 7], sigma_1))
            choice = xor(g, and_(e, xor(f, g)))
            differ = xor(a, b)  # in the next round, this is where b and c do
            majority = xor(b, and_(differ, differed))
            t_1 = add(
                add(h, self._mixed(e, (6, 11, 25))), add(choice, add(w[t], self._k(first, t)))
            )
            t_2 = add(self._mixed(a, (2, 13, 22)), majority)
            a, b, c, d, e, f, g, h = add(t_1, t_2), a, b, c, add(d, t_1), e, f, g
            differed = differ
        return [a, b, c, d, e, f, g, h]

    def _k(self, first: Any, t: int) -> Any:
        """The constant of a round, in every lane."""
        builder = self._builder
        known = builder.module.globals.get("k")
        if known is None:
            kind = ir.ArrayType(_WORD, len(K))
            known = ir.GlobalVariable(builder.module, kind, "k")
            known.initializer = ir.Constant(kind, [ir.Constant(_WORD, word) for word in K])
            known.global_constant, known.linkage = True, "internal"
        number = builder.add(first, ir.Constant(ADDRESS, t))
        word = builder.load(builder.gep(known, [ir.Constant(ADDRESS, 0), number]))
        place = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(place, word, ir.Constant(_WORD, 0))
        return builder.shuffle_vector(one, one, _chosen([0] * LANES))

    def _words(self, starts: Sequence[Any]) -> list[Any]:
        """The 16 words of a block: vectors of all streams' first words, second words, and so on."""
        words = []
        for half in (0, BLOCK // 2):
            places = [self._builder.add(start, ir.Constant(ADDRESS, half)) for start in starts]
            rows = [self._load(place) for place in places]
            words += self._transposed(
                [
                    self._builder.call(self._swap_bytes, [row]) for row in rows
                ]  # most significant first
            )
        return words

    def _mixed(self, x: Any, rotations: Sequence[int], *, shift: int | None = None) -> Any:
        """The exclusive or of x rotated, and shifted, to the right: the four functions sigma."""
        terms = [self._builder.call(self._rotate, [x, x, _constant(r)]) for r in rotations]
        if shift is not None:
            terms.append(self._builder.lshr(x, _constant(shift)))
        return self._builder.xor(self._builder.xor(*terms[:2]), terms[2])

    def _transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Eight vectors of each row's first words, second words, and so on.

        Each step exchanges halves of squares, of one word, of two and of four.
        """
        for width in (1, 2, 4):
            low = [i if not i & width else i - width + LANES for i in range(LANES)]
            high = [i + width for i in low]
            rows = [
                self._builder.shuffle_vector(
                    rows[i & ~width], rows[i | width], _chosen(high if i & width else low)
                )
                for i in range(LANES)
            ]
        return list(rows)

    def _load(self, address: Any, kind: Any = _VECTOR) -> Any:
        """What is in memory, wherever it begins."""
        loaded = self._builder.load(self._builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def _declared(self, name: str, arguments: int) -> Any:
        """A function of LLVM's own on vectors of words."""
        name, module = f"llvm.{name}.v{LANES}i32", self._builder.module
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * arguments)
        return module.globals.get(name) or ir.Function(module, kind, name)


def _constant(word: int) -> Any:
    """The same word in every lane."""
    return ir.Constant(_VECTOR, [ir.Constant(_WORD, word)] * LANES)


def _chosen(lanes: Sequence[int]) -> Any:
    """Which lanes of two vectors, counted through, make up a new one."""
    return ir.Constant(_VECTOR, [ir.Constant(_WORD, lane) for lane in lanes])
