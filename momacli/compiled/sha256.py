"""SHA-256 (FIPS 180-4) of eight streams at once, one in each lane of vector registers.

A processor's own instructions for SHA-256 wait for each other, so that one stream keeps few of
its units busy; eight streams beside each other keep all of them.

Letters are those of the standard, section 6.2.2: a to h the working variables, w the message
schedule, k the constants.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from momacli.compiled.machine_code import machine_code

LANES = 8
"""Streams at once: as many as there are words in a state, so that both turn into each other."""

BLOCK = 64
"""Bytes that are worked on at a time."""

_ROUNDS = 16
"""Rounds of a block that are written out: as many as it has words."""

K = (
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
)  # fmt: skip
"""Section 4.2.2: of the cube roots of the first 64 primes, 32 bits behind the point."""

INITIAL = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
"""Section 5.3.3: the state of a stream of which nothing is hashed yet."""

_WORD, _ADDRESS = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, LANES)


@functools.cache
def compressor() -> Callable[[int, int], None]:
    """What hashes blocks of eight streams, compiled once. Raises RuntimeError.

    It takes the address of a table [LANES, 2] of int64 and the number of blocks. In the table
    are addresses: of each stream's state, eight uint32 words, which is replaced, and of its
    first block, which the others follow. Two lanes may do the same: both come to one state.
    """
    return machine_code("compress", _module, __file__)


def _module() -> ir.Module:
    module = ir.Module(name="sha256")
    kind = ir.FunctionType(ir.VoidType(), [_ADDRESS, _ADDRESS])
    function = ir.Function(module, kind, "compress")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    _Compression(builder).generate(*function.args)
    builder.ret_void()
    return module


class _Compression:
    """Writes the code of `compress`."""

    def __init__(self, builder: Any):
        self._builder = builder
        self._rotate = self._declared("fshr", 3)
        self._swap_bytes = self._declared("bswap", 1)

    def generate(self, lanes: Any, blocks: Any) -> None:
        """Load the states, loop over the blocks, store the states."""
        builder = self._builder
        table = [
            self._load(builder.add(lanes, ir.Constant(_ADDRESS, 8 * i)), _ADDRESS)
            for i in range(2 * LANES)
        ]
        places, data = table[0::2], table[1::2]

        def after_next(number: Any, state: Sequence[Any]) -> list[Any]:
            offset = builder.mul(number, ir.Constant(_ADDRESS, BLOCK))
            return self._after_block(state, [builder.add(start, offset) for start in data])

        first = self._transposed([self._load(place) for place in places])
        last = self._repeated(first, blocks, after_next)
        for place, words in zip(places, self._transposed(last), strict=True):
            builder.store(words, builder.inttoptr(place, _VECTOR.as_pointer())).align = 4

    def _repeated(
        self, values: Sequence[Any], times: Any, step: Callable[[Any, Sequence[Any]], list[Any]]
    ) -> list[Any]:
        """What becomes of values by a step that is taken so many times, given its number too."""
        builder = self._builder
        before = builder.block
        loop, done = builder.append_basic_block("step"), builder.append_basic_block("done")
        zero, one = ir.Constant(_ADDRESS, 0), ir.Constant(_ADDRESS, 1)
        builder.cbranch(builder.icmp_signed(">", times, zero), loop, done)
        builder.position_at_end(loop)
        number, current = builder.phi(_ADDRESS), [builder.phi(value.type) for value in values]
        new = step(number, current)
        end, following = builder.block, builder.add(number, one)
        builder.cbranch(builder.icmp_signed("<", following, times), loop, done)
        builder.position_at_end(done)
        last = [builder.phi(value.type) for value in values]
        for value, entered, repeated in zip(
            [number, *current, *last],
            [zero, *values, *values],
            [following, *new, *new],
            strict=True,
        ):
            value.add_incoming(entered, before)
            value.add_incoming(repeated, end)
        return last

    def _after_block(self, state: Sequence[Any], starts: Sequence[Any]) -> list[Any]:
        """The state after one block of each stream.

        Sixteen rounds at a time: their code stays in the processor's cache of decoded
        instructions, and their values in its registers.
        """
        add, sixteen = self._builder.add, ir.Constant(_ADDRESS, _ROUNDS)

        def after_more(number: Any, values: Sequence[Any]) -> list[Any]:
            w = list(values[LANES:])
            first = add(self._builder.mul(number, sixteen), sixteen)
            return self._rounds(values[:LANES], w, first, expand=True) + w

        w = self._words(starts)
        begun = self._rounds(state, w, ir.Constant(_ADDRESS, 0), expand=False)
        more = ir.Constant(_ADDRESS, len(K) // _ROUNDS - 1)
        last = self._repeated(begun + w, more, after_more)
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
        number = builder.add(first, ir.Constant(_ADDRESS, t))
        word = builder.load(builder.gep(known, [ir.Constant(_ADDRESS, 0), number]))
        place = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(place, word, ir.Constant(_WORD, 0))
        return builder.shuffle_vector(one, one, _chosen([0] * LANES))

    def _words(self, starts: Sequence[Any]) -> list[Any]:
        """The 16 words of a block: vectors of all streams' first words, second words, and so on."""
        words = []
        for half in (0, BLOCK // 2):
            places = [self._builder.add(start, ir.Constant(_ADDRESS, half)) for start in starts]
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
