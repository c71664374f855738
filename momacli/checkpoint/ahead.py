"""Blocks read ahead: threads that fill buffers and hash what passes by."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from momacli.checkpoint.arrays import Array, is_finite
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.spans import Span

SMALLEST, LARGEST = 1 << 10, 1 << 18
"""Elements of one model in a piece, at least, and in a block, at most."""


class Buffers:
    """Memory of blocks that are over, for the next of the same size."""

    def __init__(self, rows: int, *, wide: bool):
        self._rows = rows
        self._dtype = np.float64 if wide else np.float32
        self._free: dict[int, list[Array]] = {}
        self._scratch: Array | None = None

    def take(self, length: int) -> Array:
        """One row for the base and one for each expert."""
        if self._free.get(length):
            return self._free[length].pop()
        return np.empty((self._rows, length), dtype=self._dtype)

    def give(self, buffer: Array) -> None:
        """Take back what is no longer used; what is rarely of use again is freed."""
        length = buffer.shape[1]
        if SMALLEST <= length <= LARGEST:
            self._free.setdefault(length, []).append(buffer)

    def scratch(self, length: int) -> Array:
        """One row for each expert, the same ones each time."""
        if self._scratch is None:
            self._scratch = np.empty((self._rows - 1, length), dtype=self._dtype)
        return self._scratch


def readers(
    plan: MergePlan, stack: ExitStack, *, ahead: bool
) -> Callable[[Span, Array], list[Future[bool]]]:
    """Give what starts to read a span into a buffer; the stack will end its threads.

    A checkpoint is always read by the same thread, so its bytes pass by in order. Those that
    are computed are read at once, in the caller's thread. Each tells if all it read is finite.
    """
    checkpoints = plan.checkpoints
    numbered = list(enumerate(checkpoints))
    if not ahead or not all(checkpoint.concurrent for checkpoint in checkpoints):

        def read_now(span: Span, buffer: Array) -> list[Future[bool]]:
            done: Future[bool] = Future()
            done.set_result(_read_rows(numbered, span, buffer))
            return [done]

        return read_now
    count = min(len(checkpoints), _processors())
    threads = [ThreadPoolExecutor(1, thread_name_prefix="read") for _ in range(count)]
    for thread in threads:
        stack.callback(thread.shutdown, cancel_futures=True)

    def read_ahead(span: Span, buffer: Array) -> list[Future[bool]]:
        return [
            thread.submit(_read_rows, numbered[number::count], span, buffer)
            for number, thread in enumerate(threads)
        ]

    return read_ahead


def _read_rows(numbered: Sequence[tuple[int, Checkpoint]], span: Span, buffer: Array) -> bool:
    """Fill some rows of a buffer; returns whether all they hold is finite."""
    finite = True
    for row, checkpoint in numbered:
        there = length_there(checkpoint, span)
        if there:
            values = buffer[row][:there]
            checkpoint.read_to(values, span.spec.name, span.start)
            finite = finite and is_finite(values)
    return finite


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_wide(plan: MergePlan) -> bool:
    """Whether to compute in float64, because an input has it."""
    tables = [plan.base.entries, *(expert.checkpoint.entries for expert in plan.experts)]
    return any(table[spec.name].dtype == "F64" for table in tables for spec in plan.merged)


def length_there(checkpoint: Checkpoint, span: Span) -> int:
    """How much of a span a checkpoint has: an expert may lack rows of the vocabulary."""
    return max(0, min(span.stop, checkpoint.entries[span.spec.name].elements) - span.start)
