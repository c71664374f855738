"""Entries of a given rank: those that sorting would find, of small arrays and of large ones."""

import numpy as np
import pytest

from momacli.methods._ranks import entries_of_rank, entries_of_ranks

LARGE = 150_000
"""Entries from which on a sample says where to look."""


def normal(rows: int, n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((rows, n)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 1000, LARGE, LARGE + 1])
def test_ranks_are_those_of_a_sorted_array(n: int, kind):
    values = normal(2, n).astype(kind)
    ranks = sorted({1, 1 + n // 10, max(1, n - n // 100), n})

    found = entries_of_ranks(values, ranks)

    assert np.array_equal(found, np.sort(values, axis=1)[:, np.array(ranks) - 1].T)


@pytest.mark.parametrize("rank", [1, LARGE // 3, LARGE // 2, LARGE - 1, LARGE])
def test_equal_entries_have_ranks_too(rank: int):
    values = np.repeat(np.float32([0.0, 1.0, 1.5]), LARGE // 3)[None]

    assert entries_of_rank(values, rank) == np.sort(values)[0, rank - 1]


def test_a_sample_that_misleads_changes_nothing():
    step = LARGE // (1 << 14)
    values = np.tile(np.float32([9.0] + [0.0] * (step - 1)), LARGE // step)[None]

    for rank in (1, values.size // 2, values.size):
        assert entries_of_rank(values, rank) == np.sort(values)[0, rank - 1]


def test_rows_that_lie_apart_are_read_as_they_are():
    values = normal(LARGE, 2).T

    assert np.array_equal(entries_of_rank(values, 77), np.sort(values, axis=1)[:, 76])
