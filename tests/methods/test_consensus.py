import numpy as np
import pytest
import torch

from momacli.methods.consensus import consensus, first_pass
from momacli.methods.task_arithmetic import task_arithmetic
from momacli.methods.ties import first_pass as ties_first_pass
from momacli.methods.ties import ties


def test_entries_that_fewer_than_k_tasks_recognize_are_dropped():
    taus = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.6], [1.0, 0.0, 0.1]])

    merged = consensus(taus, k=2, mask_lam=0.4, lam=1.0)

    # sums 3, 1, -0.5; all recognize the first (1 > .4 * 2), task 1 alone the second,
    # tasks 1 and 2 the third (1 > .4 * 1.5, 1.6 > .4 * 1.1, not .1 > .4 * .6)
    torch.testing.assert_close(merged, torch.tensor([3.0, 0.0, -0.5]))


def test_asking_for_no_task_is_task_arithmetic_and_for_too_many_the_base():
    taus = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))

    everything, nothing = consensus(taus, k=0), consensus(taus, k=4)

    torch.testing.assert_close(everything, task_arithmetic(taus, lam=0.3))
    assert nothing.count_nonzero() == 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_agrees_with_the_definition_in_numpy(k: int):
    taus = torch.randn(8, 60, 5, generator=torch.Generator().manual_seed(0))

    merged = consensus(taus, k=k, mask_lam=0.6, lam=0.5)

    tau = taus.numpy().astype(np.float64)
    total = tau.sum(axis=0)
    count = sum((np.abs(one) > 0.6 * np.abs(total - one)).astype(int) for one in tau)
    assert 0 < (count >= k).mean() < 1
    np.testing.assert_allclose(merged.numpy(), 0.5 * total * (count >= k), rtol=1e-5)


def test_the_multi_task_vector_may_be_that_of_ties():
    taus = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    statistic = first_pass(lambda: taus.split(70, dim=1), of="ties", density=0.5)

    merged = consensus(taus, k=0, lam=1.0, of="ties", density=0.5, statistic=statistic)

    whole = ties_first_pass(lambda: [taus], density=0.5)
    torch.testing.assert_close(merged, ties(taus, aggregate="sum", statistic=whole))
    torch.testing.assert_close(merged, consensus(taus, k=0, lam=1.0, of="ties", density=0.5))
