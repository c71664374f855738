"""The base's values and the task vectors of the tensors of a plan, a block at a time.

Blocks are read ahead by other threads, which hash what they read, into buffers that are used
again; they are small enough that what is computed of one stays in the processor's cache.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

import numpy as np

from momacli.checkpoint.ahead import (
    LARGEST,
    SMALLEST,
    Buffers,
    is_wide,
    length_there,
    readers,
)
from momacli.checkpoint.arrays import Array, is_finite
from momacli.checkpoint.block import Block, State, block_of, lengths_there
from momacli.checkpoint.hashed_file import Passing
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.reader import iterate_blocks
from momacli.checkpoint.spans import Span

_CACHED = 18 << 16
"""Elements of a piece, of base and experts together: 4.7 MB of float32, which stay in a cache that
processors share. Smaller pieces would stay in one of its own, but the calls for each cost more:
of nine ViT-B/32, 14 << 16 took 6 percent longer, and 28 << 16 no less."""

_BLOCK = 1 << 22
"""Elements of a block, of all models together."""

_AHEAD = 1 << 24
"""Elements, of all models together, that wait to be worked on or are being read."""

_LARGE_AHEAD = 3 << 24
"""The same of no more than two tensors, so that one is read while the other is worked on: enough
for nine ViT-B/32. 201 MB of float32."""

_PIECES = 8
"""Pieces that are read one after another from where a stretch begins."""

_EXPECTED = 3
"""Stretches that the system is asked to read ahead, where no thread does."""

_KEPT = 1 << 24
"""Bytes of a block whose release tells glibc to keep what else is released, for the next
temporary array, instead of giving it back to the system page by page."""


def block_size(plan: MergePlan) -> int:
    """Elements of one model to read at a time: a power of two, large enough to be worth it."""
    return min(LARGEST, max(SMALLEST, _power_of_two(_BLOCK // (1 + len(plan.experts)))))


def piece_size(plan: MergePlan) -> int:
    """Elements to compute at a time, where a method works on each by itself."""
    return max(1, _CACHED // (1 + len(plan.experts)) // SMALLEST) * SMALLEST


def stretch_size(plan: MergePlan) -> int:
    """Elements of one model that are handed out in pieces."""
    return _PIECES * piece_size(plan)


def _power_of_two(limit: int) -> int:
    """The largest one that is no more than `limit`."""
    return 1 << max(0, limit.bit_length() - 1)


def read_blocks(
    plan: MergePlan,
    wanted: Sequence[Span],
    *,
    piece: int | None = None,
    ahead: bool = True,
    known: bool = False,
) -> Iterator[tuple[Span, Block]]:
    """Read spans one after another; a block is valid until the next one is asked for.

    piece: elements of a block; those of a span are read at once and handed out in pieces. By
        default a block is a whole span.
    ahead: whether other threads read while the caller works; not worth it for short spans, nor
        for pieces of files: those are read into the cache, hashed and worked on there, sooner
        than two threads could hand them to each other.
    known: whether nothing has to be found out here of what is not finite, unless that is
        tolerated: the same spans were read before, or the caller's result will show it.

    Raises ConflictError, naming the model and the tensor, where a value is not finite.
    """
    np.empty(_KEPT, dtype=np.uint8)
    known = known and plan.tolerated is None
    if piece is not None and all(checkpoint.concurrent for checkpoint in plan.checkpoints):
        yield from _read_pieces(plan, wanted, piece, known=known)
        return
    rows = 1 + len(plan.experts)
    vectors = any(expert.is_task_vector for expert in plan.experts)
    pool = Buffers(rows, wide=is_wide(plan), most=_LARGE_AHEAD)
    pending: deque[tuple[Span, Array, list[Future[bool]]]] = deque()
    left = deque(wanted)
    held = 0  # elements waited for or worked on
    with ExitStack() as stack:
        start = readers(plan, stack, ahead=ahead, known=known)
        while left or pending:
            while left and (
                not held
                or held + rows * left[0].length <= (_LARGE_AHEAD if len(pending) == 1 else _AHEAD)
            ):
                span = left.popleft()
                buffer = pool.take(span.length)
                pending.append((span, buffer, start(span, buffer)))
                held += rows * span.length
            span, buffer, reading = pending.popleft()
            broken = sum(not part.result() for part in reading)
            short = any(length != span.length for length in lengths_there(plan, span))
            state = State(finite=not broken, plain=not short and not vectors)
            if piece is None or span.length <= piece:
                thetas = buffer[1:]
                yield span, block_of(plan, span, buffer[0], thetas, thetas, state)
            else:
                yield from _pieces(plan, span, buffer, pool.scratch(piece), state)
            held -= rows * span.length
            pool.give(buffer)


def _read_pieces(
    plan: MergePlan, wanted: Sequence[Span], piece: int, *, known: bool
) -> Iterator[tuple[Span, Block]]:
    """Read spans a piece at a time, each into the same memory, which so stays in the cache.

    known: whether all values are known to be finite.
    """
    checkpoints = plan.checkpoints
    vectors = any(expert.is_task_vector for expert in plan.experts)
    memory = _Memory(len(checkpoints), piece, wide=is_wide(plan))
    passing = Passing()
    for number, span in enumerate(wanted):
        for later in wanted[number + _EXPECTED : number + _EXPECTED + 1]:
            for checkpoint in checkpoints:
                checkpoint.expect(later.spec.name, later.start, later.stop)
        stored = [checkpoint.stored(span.spec.name) for checkpoint in checkpoints]
        whole = min(lengths_there(plan, span)) == span.length
        plain = whole and not vectors
        for start, stop in iterate_blocks(span.length, _evenly(span.length, piece)):
            part = Span(span.spec, span.start + start, span.start + stop)
            buffer, rows = memory.of(part.length)
            for row, checkpoint, values in zip(rows, checkpoints, stored, strict=True):
                there = part.length if whole else length_there(checkpoint, part)
                values.read_to(row[:there], part.start, passing)
                row[there:] = 0
            passing.hash()
            theta_0, thetas = buffer[0], buffer[1:]
            state = State(finite=known or is_finite(buffer), plain=plain)
            yield part, block_of(plan, part, theta_0, thetas, thetas, state)


def _evenly(length: int, most: int) -> int:
    """Elements of equal pieces, as few as there can be of at most so many elements."""
    count = max(1, -(-length // most))
    return min(most, -(-length // count // SMALLEST) * SMALLEST)


class _Memory:
    """The same memory for each piece: one row for the base and one for each expert."""

    def __init__(self, rows: int, piece: int, *, wide: bool):
        self._rows = rows
        self._memory = np.empty(rows * piece, dtype=np.float64 if wide else np.float32)
        self._last: tuple[Array, list[Array]] = self._cut(piece)

    def of(self, length: int) -> tuple[Array, list[Array]]:
        """All rows [rows, length], and each of them."""
        if self._last[0].shape[1] != length:
            self._last = self._cut(length)
        return self._last

    def _cut(self, length: int) -> tuple[Array, list[Array]]:
        buffer = self._memory[: self._rows * length].reshape(self._rows, length)
        return buffer, list(buffer)


def _pieces(
    plan: MergePlan, span: Span, buffer: Array, scratch: Array, state: State
) -> Iterator[tuple[Span, Block]]:
    for start, stop in iterate_blocks(span.length, scratch.shape[1]):
        part = Span(span.spec, span.start + start, span.start + stop)
        theta_0, thetas = buffer[0, start:stop], buffer[1:, start:stop]
        yield part, block_of(plan, part, theta_0, thetas, scratch[:, : stop - start], state)


def bytes_to_read(plan: MergePlan) -> dict[str, int]:
    """Bytes of each tensor to be merged, in the base and all experts together."""
    tables = [checkpoint.entries for checkpoint in plan.checkpoints]
    return {spec.name: sum(table[spec.name].nbytes for table in tables) for spec in plan.merged}


def bytes_of(table: Mapping[str, int], span: Span) -> float:
    """The share of a span in the bytes of whole tensors."""
    return table[span.spec.name] * span.length / span.spec.elements
