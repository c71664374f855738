import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momacli.methods._random_mask import Draws, thinned


def mask(drawn: Draws, count: int, keep: float) -> np.ndarray:
    return thinned(np.ones((1, count), dtype=np.float32), [drawn], keep)[0] > 0


@pytest.mark.parametrize("keep", [1e-9, 1 / 512, 0.1, 0.5, 0.9, 1.0])
def test_entries_are_kept_as_often_as_they_are_to_be(keep: float):
    count = 400_000

    kept = mask(Draws("seed/expert/tensor"), count, keep)

    # five standard deviations of a mean of that many choices, and one entry
    spread = np.sqrt(keep * (1 - keep) / count)
    assert kept.mean() == pytest.approx(keep, abs=5 * spread + 1 / count)


def test_a_choice_tells_nothing_of_the_next():
    kept = mask(Draws("a"), 400_000, 0.3)

    for distance in (1, 2, 7):
        both = (kept[distance:] & kept[:-distance]).mean()
        assert both == pytest.approx(0.09, abs=0.003)


@settings(deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 5000), max_size=4), keep=st.floats(1e-9, 1))
def test_a_tensor_in_blocks_gets_the_choice_of_the_whole(cuts: list[int], keep: float):
    edges = [0, *sorted(cuts), 5000]
    drawn = Draws("a")

    parts = [mask(drawn, stop - start, keep) for start, stop in itertools.pairwise(edges)]

    assert np.array_equal(np.concatenate(parts), mask(Draws("a"), 5000, keep))


def test_other_keys_give_independent_choices():
    first, second = (mask(Draws(key), 200_000, 0.5) for key in ("0/cars/w", "0/birds/w"))

    assert (first & second).mean() == pytest.approx(0.25, abs=0.005)


def test_uniform_numbers_fill_the_range_from_0_to_1():
    numbers = Draws("a").uniform(100_000)

    assert 0 <= numbers.min() < numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(10_000, rel=0.05)


def test_numbers_are_split_mix_of_the_keys_sha_256():
    # the key is the first 8 bytes of SHA-256 of b"a", little-endian
    state = int.from_bytes(bytes.fromhex("ca978112ca1bbdca"), "little")
    expected = []
    for _ in range(4):  # as Steele, Lea and Flood (2014) write it
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append((z ^ (z >> 31)) / 2**64)

    assert Draws("a").uniform(4) == pytest.approx(expected, abs=2**-24)
