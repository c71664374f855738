import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from momacli.methods._random_mask import Draws


@pytest.mark.parametrize("keep", [0.0, 1 / 512, 0.1, 0.5, 0.9, 1.0])
def test_a_mask_is_true_as_often_as_it_is_to_be(keep: float):
    count = 400_000

    mask = Draws("seed/expert/tensor").mask(count, keep)

    # five standard deviations of a mean of that many draws
    assert mask.mean() == pytest.approx(keep, abs=5 * np.sqrt(keep * (1 - keep) / count))


@settings(deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 5000), max_size=4), keep=st.floats(0, 1))
def test_a_tensor_in_blocks_gets_the_mask_of_the_whole(cuts: list[int], keep: float):
    edges = [0, *sorted(cuts), 5000]
    drawn = Draws("a")

    parts = [drawn.mask(stop - start, keep) for start, stop in itertools.pairwise(edges)]

    assert np.array_equal(np.concatenate(parts), Draws("a").mask(5000, keep))


def test_other_keys_give_independent_masks():
    first, second = (Draws(key).mask(200_000, 0.5) for key in ("0/cars/w", "0/birds/w"))

    assert (first & second).mean() == pytest.approx(0.25, abs=0.005)


def test_uniform_numbers_fill_the_range_from_0_to_1():
    numbers = Draws("a").uniform(100_000)

    assert 0 <= numbers.min() < numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(10_000, rel=0.05)


def test_bytes_are_philox_of_the_keys_sha_256():
    # the key of the first stream is the first half of SHA-256 of b"a", little-endian
    key = int.from_bytes(bytes.fromhex("ca978112ca1bbdcafac231b39a23dc4d"), "little")
    first = np.random.Philox(key=key).random_raw(1)[0]

    assert Draws("a").mask(8, 0.5).tolist() == [(int(first) >> 8 * i) % 256 < 128 for i in range(8)]
