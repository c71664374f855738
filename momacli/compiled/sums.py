"""Sums over experts, compiled: one pass where NumPy would take several."""

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.drawing import STEP, bits_of, state_of
from momacli.compiled.kept_loop import BLOCK, KeptLoop, scratch


@KeptLoop
def add_weighted_sum(
    theta_0: Array, thetas: Array, weights: Array, more: float, lam: float, merged: Array
) -> int:
    """theta_0 + lam (sum_t w_t (theta_t - theta_0) + more theta_0), in this order.

    theta_0, merged: [n]. thetas: [T, n].

    Returns how many entries differ from theta_0, or -1 where one of them is not finite.
    """
    T, n = thetas.shape
    kind = theta_0.dtype.type
    zero, extra, factor, total = kind(0), kind(more), kind(lam), scratch(BLOCK, kind)
    changed, broken = 0, False
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        base, out = theta_0[start : start + size], merged[start : start + size]
        row, weight = thetas[0, start : start + size], weights[0]
        for i in range(size):
            total[i] = zero + weight * (row[i] - base[i])  # a sum of -0.0 is 0.0, as NumPy's is
        for t in range(1, T):
            row, weight = thetas[t, start : start + size], weights[t]
            for i in range(size):
                total[i] += weight * (row[i] - base[i])
        if extra != zero:
            for i in range(size):
                total[i] += extra * base[i]
        different = _added(base, total, factor, out)
        changed += different
        broken = broken or different < 0
    return -1 if broken else changed


@KeptLoop
def add_drawn(
    theta_0: Array,
    thetas: Array,
    weights: Array,
    keys: Array,
    positions: Array,
    last: np.uint64,
    aggregate: int,
    lam: float,
    merged: Array,
) -> int:
    """theta_0 + lam times a merge of what random numbers keep of w_t (theta_t - theta_0).

    aggregate: 0 the sum; of the entries with the sign of the sum, or positive ones where that
        is zero, 1 the sum, 2 the mean. Else as for `keep_some`.

    Returns how many entries differ from theta_0, or -1 where one of them, or of what they are
    made of, is not finite.
    """
    T, n = thetas.shape
    kind = theta_0.dtype.type
    zero, one, factor = kind(0), kind(1), kind(lam)
    left, total = scratch(BLOCK, kind), scratch(BLOCK, kind)
    positive, negative = scratch(BLOCK, kind), scratch(BLOCK, kind)  # sums of those entries
    positives, negatives = scratch(BLOCK, kind), scratch(BLOCK, kind)  # how many there are
    changed, broken = 0, False
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        base, out = theta_0[start : start + size], merged[start : start + size]
        for sums in (total, positive, negative, positives, negatives):
            sums[:] = zero
        wrong = np.int32(0)
        for t in range(T):
            row, weight, key = thetas[t, start : start + size], weights[t], keys[t]
            state = state_of(key, np.uint64(positions[t] + start))
            for i in range(size):
                tau = row[i] - base[i]
                wrong = np.int32(wrong + np.int32(row[i] - row[i] != zero))
                left[i] = weight * tau if bits_of(state) <= last else zero
                state += STEP
            if aggregate == 0:
                for i in range(size):
                    total[i] += left[i]
            else:
                for i in range(size):
                    total[i] += left[i]
                    positive[i] += left[i] if left[i] > zero else zero
                    negative[i] += left[i] if left[i] < zero else zero
                    positives[i] += one if left[i] > zero else zero
                    negatives[i] += one if left[i] < zero else zero
        if aggregate:
            for i in range(size):
                above, below, more, fewer = positive[i], negative[i], positives[i], negatives[i]
                count = fewer if total[i] < zero else more
                divisor = one if aggregate == 1 or count == zero else count
                total[i] = (below if total[i] < zero else above) / divisor
        different = _added(base, total, factor, out)
        changed += different
        broken = broken or wrong > 0 or different < 0
    return -1 if broken else changed


@KeptLoop
def add_between(
    taus: Array, lows: Array, highs: Array, weights: Array, lam: float, merged: Array
) -> None:
    """The sum lam w_t tau_t over what is not smaller than `lows` nor larger than `highs`.

    taus: [T, rows, n]; lows, highs: magnitudes [T, rows]; merged: [rows, n].
    """
    T, rows, n = taus.shape
    kind = taus.dtype.type
    zero, factor = kind(0), kind(lam)
    for r in range(rows):
        for start in range(0, n, BLOCK):
            size = min(BLOCK, n - start)
            out = merged[r, start : start + size]
            out[:] = zero
            for t in range(T):
                tau, weight = taus[t, r, start : start + size], weights[t]
                low, high = lows[t, r], highs[t, r]
                for i in range(size):
                    between = (abs(tau[i]) >= low) & (abs(tau[i]) <= high)
                    out[i] += weight * tau[i] if between else zero
            for i in range(size):
                out[i] *= factor


def _added(base: Array, total: Array, factor: float, merged: Array) -> int:
    """Put base + factor * total into `merged`.

    Returns how many entries differ from the base, or -1 where one of them is not finite.
    """
    zero = base.dtype.type(0)
    different, wrong = np.int32(0), np.int32(0)  # sums of 64 bits would take longer
    for i in range(base.shape[0]):
        value = base[i] + total[i] * factor
        different = np.int32(different + np.int32(value != base[i]))
        wrong = np.int32(wrong + np.int32(value - value != zero))
        merged[i] = value
    return -1 if wrong else different
