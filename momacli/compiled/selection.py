"""Entries in a range of magnitudes, counted or picked out, compiled."""

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.kept_loop import BLOCK, KeptLoop, scratch

_EIGHTS = BLOCK // 8


_LARGEST = 0x7FFFFFFF
"""The largest int32, and all bits of a float32 but its sign."""


@KeptLoop
def count_patterns(values: Array, low: int, width: int, shift: int, bins: Array) -> int:
    """Add the magnitudes' bit patterns to bins of 2^shift from `low` on; returns those above.

    values: float32 numbers, as int32.
    """
    inside = scratch(BLOCK, np.uint8)
    eights = inside.view(np.uint64)  # few have anything inside: the others are passed over
    chosen, found = scratch(_EIGHTS, np.int64), scratch(BLOCK, np.int64)
    above = 0
    first, limit, magnitude = np.int32(low), np.int32(min(width, _LARGEST)), np.int32(_LARGEST)
    for start in range(0, values.shape[0], BLOCK):
        row = values[start : start + BLOCK]
        size = row.shape[0]
        inside[size:] = 0
        beyond = np.int32(0)  # a sum of 64 bits would take longer
        for i in range(size):
            place = np.int32(np.int32(row[i] & magnitude) - first)
            beyond = np.int32(beyond + np.int32(place >= limit))
            inside[i] = np.uint32(place) < np.uint32(limit)  # below `first`, it is large
        above += beyond
        count = _places(inside, eights, chosen, found)
        for k in range(count):
            bins[(np.int32(row[found[k]] & magnitude) - first) >> shift] += 1
    return above


@KeptLoop
def pick_between(values: Array, low: float, high: float, picked: Array, below: Array) -> int:
    """Copy the values [n] from `low` to `high` into `picked`, which is as long; returns how many.

    below: becomes [how many are less than `low`].
    """
    kind = values.dtype.type
    first, last = kind(low), kind(high)
    inside = scratch(BLOCK, np.uint8)
    eights = inside.view(np.uint64)  # few have anything inside: the others are passed over
    chosen, found = scratch(_EIGHTS, np.int64), scratch(BLOCK, np.int64)
    count = 0
    below[0] = 0
    for start in range(0, values.shape[0], BLOCK):
        row = values[start : start + BLOCK]
        size = row.shape[0]
        inside[size:] = 0
        less = np.int32(0)  # a sum of 64 bits would take longer
        for i in range(size):
            less = np.int32(less + np.int32(row[i] < first))
            inside[i] = (row[i] >= first) & (row[i] <= last)
        below[0] += less
        places = _places(inside, eights, chosen, found)
        for k in range(places):
            picked[count + k] = row[found[k]]
        count += places
    return count


def _places(inside: Array, eights: Array, chosen: Array, found: Array) -> int:
    """Where there is a 1: `found` begins with the places, in order; returns how many.

    eights: `inside` by eight of its bytes. chosen: memory for as many numbers.

    There are no branches, which the processor would often guess wrong.
    """
    some = count = 0
    for eight in range(len(eights)):
        chosen[some] = 8 * eight
        some += eights[eight] != 0
    for k in range(some):
        for i in range(chosen[k], chosen[k] + 8):
            found[count] = i
            count += inside[i]
    return count
