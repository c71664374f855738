"""Exact selection by magnitude over tensors that are only ever seen a block at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from momacli.checkpoint.arrays import Array, as_array, as_tensor
from momacli.compiled.selection import count_patterns
from momacli.methods._ranks import count_to_keep
from momacli.shapes import Float

if TYPE_CHECKING:
    from torch import Tensor

Stacks = Callable[[], "Iterable[Array | Tensor]"]
"""Reads the stacked task vectors again from the start, one flat block [T, n] at a time.

May have a method `sample`, which reads places of them that are evenly spread; none if few.
"""

Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]

_END = 1 << 31
"""The bit patterns of magnitudes are below this."""

_COUNTERS = 1 << 23
"""Bins of one pass, of all experts and ranks together: 64 MB."""

_MARGIN = 0.01
"""Share of all entries that is counted on each side of where a sample puts the threshold."""


def arrays_of(stacks: Stacks) -> Iterator[Float[np.ndarray, "T n"]]:
    """Read the stacked task vectors as arrays of the type they are merged in."""
    for block in stacks():
        yield block if isinstance(block, np.ndarray) else as_array(block)


def blocks_of(stacks: Stacks) -> Iterator[Float[np.ndarray, "T n"]]:
    """Read the stacked task vectors as arrays of float32."""
    for block in arrays_of(stacks):
        yield block.astype(np.float32, copy=False)


def tensors_of(stacks: Stacks) -> "Iterator[Float[Tensor, 'T n']]":
    """Read the stacked task vectors as tensors of float32."""
    for block in stacks():
        yield (as_tensor(block) if isinstance(block, np.ndarray) else block).float()


def largest_magnitudes(stacks: Stacks, *, density: float) -> Float[np.ndarray, " T"]:
    """Return for each expert the magnitude above or at which its top entries lie.

    Exactly the `count_to_keep(density, d)`-th largest |tau_t| over all blocks together. An expert
    of which nothing is kept gets infinity.
    """
    found: Float[np.ndarray, " T"] = magnitudes_of_ranks(
        stacks, lambda size: [count_to_keep(density, size)], [density]
    )[0]
    return found


def magnitudes_of_ranks(
    stacks: Stacks, ranks_of: Callable[[int], Sequence[int]], shares: Sequence[float]
) -> Float[np.ndarray, "ranks T"]:
    """Return for each expert the magnitudes that have certain ranks, from 1, the largest.

    ranks_of: the ranks among so many entries; infinity has rank 0.
    shares: about which share of all entries is above each of them.

    Equal bit for bit to sorting the whole vector, in constant memory. Magnitudes of float32
    numbers order like their bit patterns: a pass counts the patterns of a range in bins, and the
    bin that holds the answer is the next range, until it is a single pattern. Where a sample says
    where to begin, one pass is enough as a rule, else two; a sample that misleads costs a pass
    and changes nothing.
    """
    table = _sampled_ranges(stacks, shares)  # a range of each rank and expert
    while True:
        counters: list[list[_Counter]] = []
        size = 0
        for block in blocks_of(stacks):
            size += block.shape[1]
            table = table or [[_Range(0, _END)] * len(block)] * len(shares)
            counters = counters or [
                [_Counter(one, len(ranges) * len(table)) for one in ranges] for ranges in table
            ]
            for of_rank in counters:
                for counter, row in zip(of_rank, block, strict=True):
                    counter.add(row)
        if not counters:
            return np.empty((len(shares), 0), np.float32)
        table = [
            [counter.narrowed(rank) for counter in of_rank]
            for rank, of_rank in zip(ranks_of(size), counters, strict=True)
        ]
        if all(one.width == 1 for ranges in table for one in ranges):
            lows = [[one.low for one in ranges] for ranges in table]
            return np.array(lows, np.int32).view(np.float32)


@dataclass(frozen=True)
class _Range:
    """Bit patterns from `low` on, `width` of them."""

    low: int
    width: int


_INFINITY = _Range(0x7F800000, 1)


class _Counter:
    """Counts one expert's entries above a range, and within it by equal bins."""

    def __init__(self, counted: _Range, counters: int):
        """counters: how many there are in all."""
        self._range = counted
        share = _COUNTERS // counters
        self._shift = max(0, -(-counted.width // share) - 1).bit_length()
        self._bins = np.zeros(((counted.width - 1) >> self._shift) + 1, dtype=np.int64)
        self._above = 0

    def add(self, values: Float[np.ndarray, " n"]) -> None:
        """Count a row of numbers."""
        bits = np.ascontiguousarray(values).view(np.int32)
        known = self._range
        self._above += count_patterns(bits, known.low, known.width, self._shift, self._bins)

    def narrowed(self, rank: int) -> _Range:
        """The bin that holds the entry of this rank from the top; all where it is not inside."""
        if rank == 0:
            return _INFINITY
        from_top = np.cumsum(self._bins[::-1])
        wanted = rank - self._above
        if not 0 < wanted <= from_top[-1]:
            return _Range(0, _END)
        place = len(self._bins) - 1 - int(np.searchsorted(from_top, wanted))
        return _Range(self._range.low + (place << self._shift), 1 << self._shift)


def _patterns(values: Float[np.ndarray, "*shape"]) -> Integers:
    """The bit patterns of magnitudes as int32; their order is the order of magnitudes."""
    patterns: Integers = np.ascontiguousarray(values).view(np.int32) & np.int32(0x7FFFFFFF)
    return patterns


def _sampled_ranges(stacks: Stacks, shares: Sequence[float]) -> list[list[_Range]]:
    """A range for each share and expert that the threshold is likely in; none without a sample."""
    sample: Stacks | None = getattr(stacks, "sample", None)
    blocks = [_patterns(block) for block in blocks_of(sample)] if sample else []
    if not blocks:
        return []
    ascending = np.sort(np.concatenate(blocks, axis=1))
    return [[_around(row, share) for row in ascending] for share in shares]


def _around(ascending: Integers, share: float) -> _Range:
    size = len(ascending)
    first = int((1 - share - _MARGIN) * size)
    last = int((1 - share + _MARGIN) * size) + 1
    low = int(ascending[first]) if 0 <= first < size else 0
    high = int(ascending[last]) if 0 <= last < size else _END - 1
    return _Range(low, max(low, high) - low + 1)
