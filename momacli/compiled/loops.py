"""Loops over single entries, compiled: one pass where NumPy would take a dozen.

They are short enough to stay in the processor's first cache and to be vectorised. Where one of
two arrays is chosen by entry, both are read first: a choice of what to read is much slower.
"""

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.kept_loop import KeptLoop, scratch

_BLOCK = 1 << 10
"""Entries whose sums are in the cache at once."""

_EIGHTS = _BLOCK // 8

_SUMS = 1 << 8
"""Parts that a long sum is taken in, so that it is vectorised."""

_LARGEST = 0x7FFFFFFF
"""The largest int32, and all bits of a float32 but its sign."""


@KeptLoop
def add_weighted_sum(
    theta_0: Array, thetas: Array, weights: Array, lam: float, merged: Array
) -> int:
    """theta_0 + lam sum_t w_t (theta_t - theta_0), in this order; both n long, thetas [T, n].

    Returns how many entries differ from theta_0, or -1 where one of them is not finite.
    """
    T, n = thetas.shape
    zero, factor = theta_0.dtype.type(0), theta_0.dtype.type(lam)
    changed = broken = 0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        base, out = theta_0[start : start + size], merged[start : start + size]
        row, weight = thetas[0, start : start + size], weights[0]
        for i in range(size):
            out[i] = zero + weight * (row[i] - base[i])  # a sum of -0.0 is 0.0, as NumPy's is
        for t in range(1, T):
            row, weight = thetas[t, start : start + size], weights[t]
            for i in range(size):
                out[i] += weight * (row[i] - base[i])
        different, wrong = np.int32(0), np.int32(0)  # sums of 64 bits would take longer
        for i in range(size):
            value = base[i] + out[i] * factor
            different = np.int32(different + np.int32(value != base[i]))
            wrong = np.int32(wrong + np.int32(value - value != zero))
            out[i] = value
        changed += different
        broken += wrong
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
    left, total = scratch(_BLOCK, kind), scratch(_BLOCK, kind)
    positive, negative = scratch(_BLOCK, kind), scratch(_BLOCK, kind)  # sums of those entries
    positives, negatives = scratch(_BLOCK, kind), scratch(_BLOCK, kind)  # how many there are
    changed = broken = 0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        base, out = theta_0[start : start + size], merged[start : start + size]
        for sums in (total, positive, negative, positives, negatives):
            sums[:] = zero
        wrong = np.int32(0)
        for t in range(T):
            row, weight, key = thetas[t, start : start + size], weights[t], keys[t]
            state = _state(key, np.uint64(positions[t] + start))
            for i in range(size):
                tau = row[i] - base[i]
                wrong = np.int32(wrong + np.int32(row[i] - row[i] != zero))
                left[i] = weight * tau if _mixed(state) <= last else zero
                state += _STEP
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
        different = np.int32(0)
        for i in range(size):
            value = base[i] + total[i] * factor
            different = np.int32(different + np.int32(value != base[i]))
            wrong = np.int32(wrong + np.int32(value - value != zero))
            out[i] = value
        changed += different
        broken += wrong
    return -1 if broken else changed


@KeptLoop
def products_of_two(first: Array, second: Array, base: Array, products: Array) -> None:
    """Of a = first + base and b = second + base, [n] each: a . a, a . b and b . b, in float64."""
    wide, n = np.float64, first.shape[0]
    aa, ab, bb = scratch(_SUMS, wide), scratch(_SUMS, wide), scratch(_SUMS, wide)
    for sums in (aa, ab, bb):
        sums[:] = 0
    for start in range(0, n, _SUMS):
        size = min(_SUMS, n - start)
        x, y, z = (
            first[start : start + size], second[start : start + size], base[start : start + size],
        )  # fmt: skip
        for i in range(size):
            a, b = wide(x[i]) + wide(z[i]), wide(y[i]) + wide(z[i])
            aa[i] += a * a
            ab[i] += a * b
            bb[i] += b * b
    products[:] = 0
    for i in range(_SUMS):
        products[0] += aa[i]
        products[1] += ab[i]
        products[2] += bb[i]


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
    total = scratch(_BLOCK, kind)
    positive = scratch(_BLOCK, kind)  # sum of the positive entries
    negative = scratch(_BLOCK, kind)
    positives = scratch(_BLOCK, kind)  # how many there are, or their weights
    negatives = scratch(_BLOCK, kind)
    cancelled = balance = 0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
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
    zero, total = kind(0), scratch(_BLOCK, kind)
    balance = 0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
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


@KeptLoop
def count_patterns(values: Array, low: int, width: int, shift: int, bins: Array) -> int:
    """Add the magnitudes' bit patterns to bins of 2^shift from `low` on; returns those above.

    values: float32 numbers, as int32.
    """
    inside = scratch(_BLOCK, np.uint8)
    eights = inside.view(np.uint64)  # few have anything inside: the others are passed over
    chosen, found = scratch(_EIGHTS, np.int64), scratch(_BLOCK, np.int64)
    above = 0
    first, limit, magnitude = np.int32(low), np.int32(min(width, _LARGEST)), np.int32(_LARGEST)
    for start in range(0, values.shape[0], _BLOCK):
        row = values[start : start + _BLOCK]
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
    inside = scratch(_BLOCK, np.uint8)
    eights = inside.view(np.uint64)  # few have anything inside: the others are passed over
    chosen, found = scratch(_EIGHTS, np.int64), scratch(_BLOCK, np.int64)
    count = 0
    below[0] = 0
    for start in range(0, values.shape[0], _BLOCK):
        row = values[start : start + _BLOCK]
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
        for start in range(0, n, _BLOCK):
            size = min(_BLOCK, n - start)
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


@KeptLoop
def keep_some(values: Array, keys: Array, positions: Array, last: np.uint64, kept: Array) -> None:
    """Copy the values [T, n] whose random number of 64 bits is at most `last`, zeros for others.

    keys, positions: of each row, what its numbers are made of and where they begin.
    """
    zero = values.dtype.type(0)
    for t in range(values.shape[0]):
        row, out = values[t], kept[t]
        state = _state(keys[t], np.uint64(positions[t]))
        for i in range(row.shape[0]):
            out[i] = row[i] if _mixed(state) <= last else zero
            state += _STEP


def keep_by_rank(
    values: Array,
    order: Array,
    key: np.uint64,
    position: int,
    probabilities: Array,
    divide: bool,
    kept: Array,
) -> None:
    """Copy each of the values [rows, n] with the probability of its rank, and zeros for others.

    order: the places of each row's values, by rank. divide: what is kept, by its probability.
    """
    shares = np.empty(values.shape[1], probabilities.dtype)
    _keep_by_rank(values, order, key, position, probabilities, int(divide), shares, kept)


@KeptLoop
def _keep_by_rank(
    values: Array,
    order: Array,
    key: np.uint64,
    position: int,
    probabilities: Array,
    divide: int,
    shares: Array,
    kept: Array,
) -> None:
    n = values.shape[1]
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for r in range(values.shape[0]):
        row, out, places = values[r], kept[r], order[r]
        first = np.uint64(position + r * n)
        for rank in range(n):
            shares[places[rank]] = probabilities[rank]
        for i in range(n):
            share = shares[i]
            divisor = share if divide else one
            out[i] = row[i] / divisor if _uniform(key, first + np.uint64(i)) < share else zero


@KeptLoop
def draw_uniform(key: np.uint64, position: int, numbers: Array) -> None:
    """Fill with numbers from [0, 1), multiples of 2^-24."""
    for i in range(numbers.shape[0]):
        numbers[i] = _uniform(key, np.uint64(position) + np.uint64(i))


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


def _uniform(key: np.uint64, counter: np.uint64) -> np.float32:
    """A number from [0, 1), a multiple of 2^-24."""
    drawn = _split_mix(key, counter) >> np.uint64(40)
    number: np.float32 = np.float32(drawn) * np.float32(2**-24)
    return number


def _split_mix(key: np.uint64, counter: np.uint64) -> np.uint64:
    """SplitMix64 (Steele, Lea and Flood 2014): random bits of a key and a counter."""
    mixed: np.uint64 = _mixed(_state(key, counter))
    return mixed


_STEP = np.uint64(0x9E3779B97F4A7C15)
"""From the state of one number to that of the next."""


def _state(key: np.uint64, counter: np.uint64) -> np.uint64:
    state: np.uint64 = key + (counter + np.uint64(1)) * _STEP
    return state


def _mixed(state: np.uint64) -> np.uint64:
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.uint64 = z ^ (z >> np.uint64(31))
    return mixed
