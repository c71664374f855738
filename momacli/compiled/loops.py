"""Loops over single entries, compiled: one pass where NumPy would take a dozen.

Numba keeps the machine code beside this file or in the user's cache, so that it is compiled
once. The loops are short enough to stay in the processor's first cache and to be vectorised.
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np

from momacli.checkpoint.arrays import Array

_Loop = TypeVar("_Loop", bound=Callable[..., object])

_BLOCK = 1 << 10
"""Entries whose sums are in the cache at once."""


def _compiled(loop: _Loop) -> _Loop:
    try:
        compiled: _Loop = numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no place to keep it
        compiled = numba.njit(nogil=True)(loop)
    return compiled


@_compiled
def elect_and_merge(
    taus: Array, thresholds: Array, weights: Array, majority: int, aggregate: int, merged: Array
) -> bool:
    """Trim, elect signs and merge, as TIES does; aggregate: 0 the sum, 1 the mean, 2 weighted.

    Returns whether in some entry what is left cancels out, so that the majority matters.
    """
    T, n = taus.shape
    kind = taus.dtype.type
    zero, one = kind(0), kind(1)
    left = np.empty(_BLOCK, taus.dtype)  # of one expert's entries
    total = np.empty(_BLOCK, taus.dtype)
    positive = np.empty(_BLOCK, taus.dtype)  # sum of the positive entries
    negative = np.empty(_BLOCK, taus.dtype)
    positives = np.empty(_BLOCK, taus.dtype)  # how many there are, or their weights
    negatives = np.empty(_BLOCK, taus.dtype)
    cancelled = False
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        for sums in (total, positive, negative, positives, negatives):
            sums[:] = zero
        for t in range(T):
            row, threshold, weight = taus[t, start : start + size], thresholds[t], weights[t]
            share = weight if aggregate == 2 else one
            # loops over few arrays each: those the compiler can vectorise
            for i in range(size):
                left[i] = weight * row[i] * kind(abs(row[i]) >= threshold)
            for i in range(size):
                total[i] += left[i]
            for i in range(size):
                positive[i] += left[i] * kind(left[i] > zero)
            for i in range(size):
                negative[i] += left[i] * kind(left[i] < zero)
            for i in range(size):
                positives[i] += share * kind(left[i] > zero)
            for i in range(size):
                negatives[i] += share * kind(left[i] < zero)
        for i in range(size):
            cancelled |= total[i] == zero and positive[i] > zero
            up = total[i] > zero or (total[i] == zero and majority > 0)
            elected = positive[i] if up else negative[i]
            count = positives[i] if up else negatives[i]
            divides = aggregate != 0 and count != zero
            merged[start + i] = elected / count if divides else elected
    return cancelled


@_compiled
def count_patterns(values: Array, low: int, width: int, shift: int, bins: Array) -> int:
    """Add the magnitudes' bit patterns to bins of 2^shift from `low` on; returns those above.

    values: float32 numbers, as int32.
    """
    above = 0
    places = np.empty(_BLOCK, np.int32)
    inside = np.empty(_BLOCK + 1, np.int32)
    first, limit = np.int32(low), np.int32(min(width, 0x7FFFFFFF))
    for start in range(0, values.shape[0], _BLOCK):
        row = values[start : start + _BLOCK]
        size = row.shape[0]
        for i in range(size):
            places[i] = np.int32(row[i] & np.int32(0x7FFFFFFF)) - first
        beyond = np.int32(0)
        for i in range(size):
            beyond += np.int32(places[i] >= limit)
        above += beyond
        found = 0
        for i in range(size):  # without a branch, which nothing could predict
            inside[found] = places[i]
            found += (places[i] >= 0) & (places[i] < limit)
        for i in range(found):
            bins[inside[i] >> shift] += 1
    return above


@_compiled
def keep_some(values: Array, key: np.uint64, position: int, limit: np.uint64, kept: Array) -> None:
    """Copy the values whose random number of 64 bits is below `limit`, and zeros for others."""
    for i in range(values.shape[0]):
        drawn = _split_mix(key, np.uint64(position + i))
        kept[i] = values[i] if drawn < limit else values.dtype.type(0)


@_compiled
def draw_uniform(key: np.uint64, position: int, numbers: Array) -> None:
    """Fill with numbers from [0, 1), multiples of 2^-24."""
    for i in range(numbers.shape[0]):
        drawn = _split_mix(key, np.uint64(position + i))
        numbers[i] = np.float32(drawn >> np.uint64(40)) * np.float32(2**-24)


@_compiled
def _split_mix(key: np.uint64, counter: np.uint64) -> np.uint64:
    """SplitMix64 (Steele, Lea and Flood 2014): random bits of a key and a counter."""
    z = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.uint64 = z ^ (z >> np.uint64(31))
    return mixed
