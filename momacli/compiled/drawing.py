"""Random numbers by key and place, and what they keep, compiled."""

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.compiled.kept_loop import KeptLoop


@KeptLoop
def keep_some(values: Array, keys: Array, positions: Array, last: np.uint64, kept: Array) -> None:
    """Copy the values [T, n] whose random number of 64 bits is at most `last`, zeros for others.

    keys, positions: of each row, what its numbers are made of and where they begin.
    """
    zero = values.dtype.type(0)
    for t in range(values.shape[0]):
        row, out = values[t], kept[t]
        state = state_of(keys[t], np.uint64(positions[t]))
        for i in range(row.shape[0]):
            out[i] = row[i] if bits_of(state) <= last else zero
            state += STEP


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


def _uniform(key: np.uint64, counter: np.uint64) -> np.float32:
    """A number from [0, 1), a multiple of 2^-24."""
    drawn = _split_mix(key, counter) >> np.uint64(40)
    number: np.float32 = np.float32(drawn) * np.float32(2**-24)
    return number


def _split_mix(key: np.uint64, counter: np.uint64) -> np.uint64:
    """SplitMix64 (Steele, Lea and Flood 2014): random bits of a key and a counter."""
    bits: np.uint64 = bits_of(state_of(key, counter))
    return bits


STEP = np.uint64(0x9E3779B97F4A7C15)
"""From the state of one number to that of the next."""


def state_of(key: np.uint64, counter: np.uint64) -> np.uint64:
    """What the number of a key and a counter is made of; that of the next is STEP above."""
    state: np.uint64 = key + (counter + np.uint64(1)) * STEP
    return state


def bits_of(state: np.uint64) -> np.uint64:
    """The random number of a state."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits: np.uint64 = z ^ (z >> np.uint64(31))
    return bits
