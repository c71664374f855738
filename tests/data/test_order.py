from itertools import islice

import torch

from momacli.data.order import generator_of, in_rounds, shuffled


def batches(count: int, size: int, number: int) -> list[list[int]]:
    order = in_rounds(count, size, torch.Generator().manual_seed(0))
    return [batch.tolist() for batch in islice(order, number)]


def test_every_sample_comes_once_before_any_comes_twice():
    seen = [index for batch in batches(12, 4, 3) for index in batch]

    assert sorted(seen) == list(range(12))


def test_no_batch_is_smaller_unless_there_are_fewer_samples():
    assert {len(batch) for batch in batches(11, 4, 9)} == {4}
    assert sorted(batches(3, 4, 1)[0]) == [0, 1, 2]


def test_a_task_has_an_order_of_its_own():
    one, other = (next(shuffled(50, 50, seed=0, task=task)).tolist() for task in ("a", "b"))
    again = next(in_rounds(50, 50, generator_of(0, "a"))).tolist()

    assert one == again
    assert one != other
