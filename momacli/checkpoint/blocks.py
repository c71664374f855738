"""The base's values and the task vectors of the tensors of a plan, a block at a time.

Blocks are read ahead by other threads, which hash what they read, into buffers that are used
again; they are small enough that what is computed of one stays in the processor's cache.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import MERGEABLE_DTYPES
from momacli.checkpoint.nonfinite import SetAside, Tolerated
from momacli.checkpoint.plan import Expert, MergePlan
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError

if TYPE_CHECKING:
    from torch import Tensor

_CACHED = 1 << 20
"""Elements of a block, of base and experts together: 4 MB of float32."""

_SMALLEST, _LARGEST = 1 << 14, 1 << 18
"""Elements of a block of one model."""

_AHEAD = 1 << 23
"""Elements, of all models together, that wait to be worked on or are being read."""

_RUNS = _RUN = 1 << 10
"""Runs of a sample, and the elements of each."""


@dataclass(frozen=True)
class Span:
    """Consecutive elements of one tensor to be merged, in row-major order."""

    spec: TensorSpec
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """A stretch of n values of one tensor, in float32, or float64 where an input has that.

    Its memory is used again for a later block.
    """

    theta_0: "Tensor"  # [n]
    taus: "Tensor"  # [T, n]
    theta_1: "Tensor | None"  # [n], the expert itself where there is exactly one
    aside: SetAside | None = None  # entries that are not finite, where that is tolerated


def block_size(plan: MergePlan) -> int:
    """Elements per block where a method works on each by itself: a power of two."""
    share = _CACHED // (1 + len(plan.experts))
    return min(_LARGEST, max(_SMALLEST, 1 << (share.bit_length() - 1)))


def spans(specs: Iterable[TensorSpec], size: int | None) -> list[Span]:
    """Split tensors in spans of at most `size` elements; None for one span a tensor."""
    found = []
    for spec in specs:
        whole = max(1, spec.elements)
        found += [Span(spec, a, b) for a, b in iterate_blocks(spec.elements, size or whole)]
    return found


def evenly_spread(specs: Sequence[TensorSpec]) -> list[Span]:
    """Runs of elements at equal distances, about a million in all; none of a small model."""
    stride = sum(spec.elements for spec in specs) // _RUNS
    if stride < 8 * _RUN:
        return []
    found, before = [], 0
    for spec in specs:
        for start in range(-before % stride, spec.elements, stride):
            found.append(Span(spec, start, min(start + _RUN, spec.elements)))
        before += spec.elements
    return found


def read_blocks(plan: MergePlan, wanted: Sequence[Span]) -> Iterator[tuple[Span, Block]]:
    """Read spans one after another; a block is valid until the next one is asked for.

    Raises ConflictError, naming the model and the tensor, where a value is not finite.
    """
    rows = 1 + len(plan.experts)
    pool = _Buffers(rows, wide=_is_wide(plan))
    pending: deque[tuple[Span, Tensor, list[Future[None]]]] = deque()
    left = deque(wanted)
    held = 0  # elements waited for or worked on
    with ExitStack() as stack:
        start = _readers(plan, stack)
        while left or pending:
            while left and (not held or held + rows * left[0].length <= _AHEAD):
                span = left.popleft()
                buffer = pool.take(span.length)
                pending.append((span, buffer, start(span, buffer)))
                held += rows * span.length
            span, buffer, reading = pending.popleft()
            for part in reading:
                part.result()
            yield span, _block(plan, span, buffer)
            held -= rows * span.length
            pool.give(buffer)


class _Buffers:
    """Memory of blocks that are over, for the next of the same size."""

    def __init__(self, rows: int, *, wide: bool):
        self._rows = rows
        self._wide = wide
        self._free: dict[int, list[Tensor]] = {}

    def take(self, length: int) -> "Tensor":
        """One row for the base and one for each expert."""
        import torch

        if self._free.get(length):
            return self._free[length].pop()
        dtype = torch.float64 if self._wide else torch.float32
        return torch.empty((self._rows, length), dtype=dtype)

    def give(self, buffer: "Tensor") -> None:
        """Take back what is no longer used; what is rarely of use again is freed."""
        length = buffer.shape[1]
        if _SMALLEST <= length <= _LARGEST:
            self._free.setdefault(length, []).append(buffer)


def _is_wide(plan: MergePlan) -> bool:
    """Whether to compute in float64, because an input has it."""
    tables = [plan.base.entries, *(expert.checkpoint.entries for expert in plan.experts)]
    return any(table[spec.name].dtype == "F64" for table in tables for spec in plan.merged)


def _readers(plan: MergePlan, stack: ExitStack) -> "Callable[[Span, Tensor], list[Future[None]]]":
    """Give what starts to read a span into a buffer; the stack will end its threads.

    A checkpoint is always read by the same thread, so its bytes pass by in order. Those that
    are computed are read at once, in the caller's thread.
    """
    checkpoints: list[Checkpoint] = [plan.base, *(item.checkpoint for item in plan.experts)]
    numbered = list(enumerate(checkpoints))
    if not all(checkpoint.concurrent for checkpoint in checkpoints):

        def read_now(span: Span, buffer: "Tensor") -> list[Future[None]]:
            _read_rows(numbered, span, buffer)
            return []

        return read_now
    count = min(len(checkpoints), _processors())
    threads = [ThreadPoolExecutor(1, thread_name_prefix="read") for _ in range(count)]
    for thread in threads:
        stack.callback(thread.shutdown, cancel_futures=True)

    def read_ahead(span: Span, buffer: "Tensor") -> list[Future[None]]:
        return [
            thread.submit(_read_rows, numbered[number::count], span, buffer)
            for number, thread in enumerate(threads)
        ]

    return read_ahead


def _read_rows(numbered: Sequence[tuple[int, Checkpoint]], span: Span, buffer: "Tensor") -> None:
    for row, checkpoint in numbered:
        there = _length_there(checkpoint, span)
        if there:
            checkpoint.read_to(buffer[row][:there], span.spec.name, span.start)


def _length_there(checkpoint: Checkpoint, span: Span) -> int:
    """How much of a span a checkpoint has: an expert may lack rows of the vocabulary."""
    return max(0, min(span.stop, checkpoint.entries[span.spec.name].elements) - span.start)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _block(plan: MergePlan, span: Span, buffer: "Tensor") -> Block:
    theta_0, taus = buffer[0], buffer[1:]
    for tau, expert in zip(taus, plan.experts, strict=True):
        there = _length_there(expert.checkpoint, span)
        if there < span.length:
            tau[there:] = 0 if expert.is_task_vector else theta_0[there:]
    vectors = [expert.is_task_vector for expert in plan.experts]
    theta_1 = taus[0].clone() if vectors == [False] else None
    if not any(vectors):
        taus.sub_(theta_0)
    else:
        for tau, is_vector in zip(taus, vectors, strict=True):
            if not is_vector:
                tau.sub_(theta_0)
    aside = _check_finite(plan, span, theta_0, taus)
    if aside is not None and theta_1 is not None:
        theta_1[aside.where] = 0
    return Block(theta_0, taus, theta_1, aside)


def bytes_to_read(plan: MergePlan) -> dict[str, int]:
    """Bytes of each tensor to be merged, in the base and all experts together."""
    checkpoints = [plan.base, *(expert.checkpoint for expert in plan.experts)]
    tables = [checkpoint.entries for checkpoint in checkpoints]
    return {spec.name: sum(table[spec.name].nbytes for table in tables) for spec in plan.merged}


def rounded(values: "Tensor", spec: TensorSpec) -> "Tensor":
    """Round once, to the type written. Raises ConflictError where that cannot hold a value."""
    from momacli.checkpoint.dtypes import torch_dtype

    result = values.to(torch_dtype(spec.dtype, spec.name))
    if not _all_finite(result):
        raise ConflictError(
            f"tensor {shown(spec.name)} of the result has values beyond {spec.dtype}",
            hint="try a smaller --lambda, --weights that do not cancel, or another --dtype",
        )
    return result


def read_head(expert: Expert, key: str, tolerated: Tolerated | None = None) -> "Tensor":
    """Read a head tensor, to be carried along.

    Raises ConflictError where it is not finite, unless that is tolerated and so noted.
    """
    import torch

    values = expert.checkpoint.read(key)
    floating = expert.checkpoint.entries[key].dtype in MERGEABLE_DTYPES
    if floating and not bool(torch.isfinite(values).all()):
        if tolerated is not None:
            broken = int((~torch.isfinite(values)).sum())
            tolerated.count(f"{expert.checkpoint.path} (kept as it is)", key, broken)
            return values
        raise ConflictError(
            f"head tensor {shown(key)} of {expert.checkpoint.path} holds NaN or infinity",
            hint="the model is broken; leave it out, or merge with --allow-nonfinite as it is",
        )
    return values


def _all_finite(values: "Tensor") -> bool:
    import torch

    total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    if math.isfinite(total):  # no NaN or infinity can hide in a finite sum
        return True
    return bool(torch.isfinite(values).all())


def _check_finite(
    plan: MergePlan, span: Span, theta_0: "Tensor", taus: "Tensor"
) -> SetAside | None:
    if _all_finite(theta_0) and _all_finite(taus):
        return None
    key = span.spec.name
    names = [f"{plan.base.path} (the base)", *(str(item.checkpoint.path) for item in plan.experts)]
    if plan.tolerated is not None:
        return plan.tolerated.set_aside(names, key, span.start, theta_0, taus)
    broken = [
        name
        for name, values in zip(names, [theta_0, *taus], strict=True)
        if not _all_finite(values)
    ]
    if not _all_finite(theta_0):
        broken = names[:1]  # then the differences from it say nothing of the experts
    if broken:
        raise ConflictError(
            f"tensor {shown(key)} holds NaN or infinity",
            details=broken,
            hint="the model is broken; leave it out, or take this tensor from the base "
            "with --exclude, or merge with --allow-nonfinite to take all such entries from it",
        )
    return None
