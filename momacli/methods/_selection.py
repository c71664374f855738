"""Exact selection by magnitude over tensors that are only ever seen a block at a time."""

from collections.abc import Callable, Iterable, Iterator
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
"""Bins of one pass, of all experts together: 64 MB."""

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

    Exactly the `count_to_keep(density, d)`-th largest |tau_t| over all blocks together, equal
    bit for bit to sorting the whole vector, in constant memory. Magnitudes of float32 numbers
    order like their bit patterns: a pass counts the patterns of a range in bins, and the bin
    that holds the answer is the next range, until it is a single pattern. Where a sample says
    where to begin, one pass is enough as a rule, else two; a sample that misleads costs a pass
    and changes nothing. An expert of which nothing is kept gets infinity.
    """
    ranges = _sampled_ranges(stacks, density)
    while True:
        counters: list[_Counter] = []
        size = 0
        for block in blocks_of(stacks):
            size += block.shape[1]
            ranges = ranges or [_Range(0, _END)] * len(block)
            counters = counters or [_Counter(item, len(ranges)) for item in ranges]
            for counter, row in zip(counters, block, strict=True):
                counter.add(row)
        keep = count_to_keep(density, size)
        if keep == 0:
            return np.full(len(counters), np.inf, dtype=np.float32)
        ranges = [counter.narrowed(keep) for counter in counters]
        if all(item.width == 1 for item in ranges):
            return np.array([item.low for item in ranges], dtype=np.int32).view(np.float32)


@dataclass(frozen=True)
class _Range:
    """Bit patterns from `low` on, `width` of them."""

    low: int
    width: int


class _Counter:
    """Counts one expert's entries above a range, and within it by equal bins."""

    def __init__(self, counted: _Range, experts: int):
        self._range = counted
        share = _COUNTERS // experts
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


def _sampled_ranges(stacks: Stacks, density: float) -> list[_Range]:
    """One range per expert that the threshold is likely in; none without a sample."""
    sample: Stacks | None = getattr(stacks, "sample", None)
    blocks = [_patterns(block) for block in blocks_of(sample)] if sample else []
    if not blocks:
        return []
    return [_around(row, density) for row in np.sort(np.concatenate(blocks, axis=1))]


def _around(ascending: Integers, density: float) -> _Range:
    size = len(ascending)
    first = int((1 - density - _MARGIN) * size)
    last = int((1 - density + _MARGIN) * size) + 1
    low = int(ascending[first]) if 0 <= first < size else 0
    high = int(ascending[last]) if 0 <= last < size else _END - 1
    return _Range(low, max(low, high) - low + 1)
