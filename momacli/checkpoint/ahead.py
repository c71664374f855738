"""Blocks read ahead: threads that fill buffers and hash what passes by."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from momacli.checkpoint.arrays import Array, is_finite
from momacli.checkpoint.hashed_file import Passing
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.checkpoint.spans import Span

SMALLEST, LARGEST = 1 << 10, 1 << 18
"""Elements of one model in a piece, at least, and in a block, at most."""

_PIECE = 1 << 17
"""Elements of one model that are read, and hashed beside others, while they are in the cache."""

_FEW = 2
"""Processors that one thread keeps busy enough, which reads and hashes beside the caller's work.
Of more, each thread hashes what it reads: that takes more of their time in all, but ends sooner."""


class Buffers:
    """Memory of blocks that are over, for later ones: new memory is cleared by the system first."""

    def __init__(self, rows: int, *, wide: bool, most: int):
        """most: elements to keep for later, as long as no block is larger."""
        self._rows = rows
        self._dtype = np.float64 if wide else np.float32
        self._most = most
        self._free: list[Array] = []  # [n] each, from the smallest
        self._scratch: Array | None = None

    def take(self, length: int) -> Array:
        """One row for the base and one for each expert."""
        wanted = self._rows * length
        fitting = next((memory for memory in self._free if memory.size >= wanted), None)
        if fitting is None:
            self._drop(self._most - wanted)
            fitting = np.empty(wanted, dtype=self._dtype)
        else:
            self._free = [memory for memory in self._free if memory is not fitting]
        return fitting[:wanted].reshape(self._rows, length)

    def give(self, buffer: Array) -> None:
        """Take back what is no longer used."""
        memory = buffer.base if buffer.base is not None else buffer
        self._free = sorted([*self._free, memory.reshape(-1)], key=len)
        self._drop(max(self._most, len(self._free[-1])))

    def _drop(self, most: int) -> None:
        """Give the smallest back to the system, until no more than so many elements are kept."""
        while self._free and sum(map(len, self._free)) > most:
            self._free.pop(0)

    def scratch(self, length: int) -> Array:
        """One row for each expert, the same ones each time."""
        if self._scratch is None:
            self._scratch = np.empty((self._rows - 1, length), dtype=self._dtype)
        return self._scratch


def readers(
    plan: MergePlan, stack: ExitStack, *, ahead: bool, known: bool
) -> Callable[[Span, Array], list[Future[bool]]]:
    """Give what starts to read a span into a buffer; the stack will end its threads.

    A checkpoint is always read by the same thread, so its bytes pass by in order; one thread
    reads all where they are hashed side by side. Those that are computed are read at once, in
    the caller's thread. Each tells if all it read is finite.

    known: whether that need not be found out.
    """
    checkpoints = plan.checkpoints
    numbered = list(enumerate(checkpoints))
    if not ahead or not all(checkpoint.concurrent for checkpoint in checkpoints):

        def read_now(span: Span, buffer: Array) -> list[Future[bool]]:
            done: Future[bool] = Future()
            done.set_result(_read_rows(numbered, span, buffer, known=known))
            return [done]

        return read_now
    in_step = any(file.is_joined for checkpoint in checkpoints for file in checkpoint.files)
    count = 1 if in_step else min(len(checkpoints), _processors())
    read = _read_in_step if in_step else _read_rows
    threads = [ThreadPoolExecutor(1, thread_name_prefix="read") for _ in range(count)]
    for thread in threads:
        stack.callback(thread.shutdown, cancel_futures=True)

    def read_ahead(span: Span, buffer: Array) -> list[Future[bool]]:
        return [
            thread.submit(read, numbered[number::count], span, buffer, known=known)
            for number, thread in enumerate(threads)
        ]

    return read_ahead


def _read_rows(
    numbered: Sequence[tuple[int, Checkpoint]], span: Span, buffer: Array, *, known: bool
) -> bool:
    """Fill some rows of a buffer; returns whether all they hold is finite, if that is known."""
    finite = True
    for row, checkpoint in numbered:
        there = length_there(checkpoint, span)
        if there:
            values = buffer[row][:there]
            checkpoint.read_to(values, span.spec.name, span.start)
            finite = finite and (known or is_finite(values))
    return finite


def _read_in_step(
    numbered: Sequence[tuple[int, Checkpoint]], span: Span, buffer: Array, *, known: bool
) -> bool:
    """The same, a piece of each at a time, which are hashed side by side."""
    finite, passing = True, Passing()
    stored = [
        (buffer[row], checkpoint.stored(span.spec.name), length_there(checkpoint, span))
        for row, checkpoint in numbered
    ]
    for start, stop in iterate_blocks(span.length, _PIECE):
        for row, tensor, there in stored:
            values = row[start : min(stop, there)]
            if len(values):
                tensor.read_to(values, span.start + start, passing)
                finite = finite and (known or is_finite(values))
        passing.hash()
    return finite


def is_read_in_step() -> bool:
    """Whether whole tensors are read by one thread, a piece of each at a time."""
    return _processors() <= _FEW


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
