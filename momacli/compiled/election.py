"""The election of signs by TIES, compiled: one pass where NumPy would take a dozen.

Where one of two arrays is chosen by entry, both are read first: a choice of what to read is much
slower.
"""

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.kept_loop import BLOCK, KeptLoop, scratch


def elect_and_merge(
    taus: Array, thresholds: Array, weights: Array, majority: int, aggregate: int, merged: Array
) -> tuple[bool, int]:
    """Trim, elect signs and merge, as TIES does; aggregate: 0 the sum, 1 the mean, 2 weighted.

    Returns whether in some entry what is left cancels out, so that the majority matters, and
    the balance of signs.
    """
    found = np.empty(2, np.int64)
    _elect_and_merge(taus, thresholds, weights, majority, aggregate, merged, found)
    return bool(found[0]), int(found[1])


@KeptLoop
def _elect_and_merge(
    taus: Array,
    thresholds: Array,
    weights: Array,
    majority: int,
    aggregate: int,
    merged: Array,
    found: Array,
) -> None:
    T, n = taus.shape
    kind = taus.dtype.type
    zero, one = kind(0), kind(1)
    total = scratch(BLOCK, kind)
    positive = scratch(BLOCK, kind)  # sum of the positive entries
    negative = scratch(BLOCK, kind)
    positives = scratch(BLOCK, kind)  # how many there are, or their weights
    negatives = scratch(BLOCK, kind)
    cancelled = balance = 0
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        for sums in (total, positive, negative, positives, negatives):
            sums[:] = zero
        for t in range(T):
            row, threshold, weight = taus[t, start : start + size], thresholds[t], weights[t]
            share = weight if aggregate == 2 else one
            for i in range(size):
                left = weight * row[i] if abs(row[i]) >= threshold else zero
                total[i] += left
                positive[i] += left if left > zero else zero
                negative[i] += left if left < zero else zero
                positives[i] += share if left > zero else zero
                negatives[i] += share if left < zero else zero
        zeros, signs = np.int32(0), np.int32(0)  # sums of 64 bits would take longer
        for i in range(size):
            zeros = np.int32(zeros + np.int32((total[i] == zero) & (positive[i] > zero)))
            sign = np.int32(total[i] > zero) - np.int32(total[i] < zero)
            signs = np.int32(signs + np.int32(sign))
        cancelled += zeros
        balance += signs
        out = merged[start : start + size]
        for i in range(size):
            above, below, more, fewer = positive[i], negative[i], positives[i], negatives[i]
            elected = kind(majority) if total[i] == zero else total[i]
            count = more if elected > zero else fewer
            divisor = one if aggregate == 0 or count == zero else count
            out[i] = (above if elected > zero else below) / divisor
    found[0] = cancelled
    found[1] = balance


@KeptLoop
def balance_of_signs(taus: Array, thresholds: Array, weights: Array) -> int:
    """How many entries have a positive sum after trimming, less those with a negative one."""
    T, n = taus.shape
    kind = taus.dtype.type
    zero, total = kind(0), scratch(BLOCK, kind)
    balance = 0
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        total[:] = zero
        for t in range(T):
            row, threshold, weight = taus[t, start : start + size], thresholds[t], weights[t]
            for i in range(size):
                total[i] += weight * row[i] if abs(row[i]) >= threshold else zero
        signs = np.int32(0)
        for i in range(size):
            sign = np.int32(total[i] > zero) - np.int32(total[i] < zero)
            signs = np.int32(signs + np.int32(sign))
        balance += signs
    return balance
