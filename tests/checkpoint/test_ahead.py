"""Memory of blocks that are over serves later ones."""

import numpy as np

from momacli.checkpoint.ahead import Buffers


def addresses(*buffers: np.ndarray) -> list[int]:
    return [buffer.__array_interface__["data"][0] for buffer in buffers]


def test_a_block_that_is_over_lends_its_memory_to_one_of_any_size_that_fits():
    pool = Buffers(3, wide=False, most=3000)
    first = pool.take(1000)
    pool.give(first)

    later = pool.take(700)

    assert addresses(first) == addresses(later)
    assert later.shape == (3, 700)
    assert later.dtype == np.float32


def test_the_smallest_memory_that_fits_is_taken():
    pool = Buffers(2, wide=True, most=10_000)
    small, large = pool.take(10), pool.take(100)
    pool.give(large)
    pool.give(small)

    assert addresses(pool.take(9)) == addresses(small)
    assert addresses(pool.take(9)) == addresses(large)


def test_blocks_that_are_worked_on_share_nothing():
    pool = Buffers(2, wide=False, most=400)
    pool.give(pool.take(100))

    taken = [pool.take(40) for _ in range(3)]

    for number, buffer in enumerate(taken):
        buffer[:] = number
    assert [set(buffer.flat) for buffer in taken] == [{0}, {1}, {2}]


def test_no_more_is_kept_than_was_said_but_the_largest_block():
    pool = Buffers(1, wide=False, most=1000)
    blocks = [pool.take(length) for length in (300, 400, 500, 2000)]

    for block in blocks[:3]:
        pool.give(block)
    assert sum(len(memory) for memory in pool._free) <= 1000
    pool.give(blocks[3])
    assert [len(memory) for memory in pool._free] == [2000]
    pool.take(3000)
    assert pool._free == []
