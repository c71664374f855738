import numpy as np
import torch
from tiny_ensemble import tiny_ensemble

from momacli.adaptation.adamerging_plus_plus import (
    adamerging_plus_plus,
    elected,
    with_coefficients,
)
from momacli.methods.ties import TiesStatistic, first_pass, ties


def test_small_entries_and_those_against_the_elected_sign_are_gone():
    taus = np.array([[3.0, 0.1, -2.0, 2.0], [-1.0, 4.0, -1.0, -2.0]], dtype=np.float32)
    statistic = TiesStatistic(np.array([1.0, 1.0], dtype=np.float32))

    kept = elected(taus, statistic)

    expected = [[3.0, 0.0, -2.0, 2.0], [0.0, 4.0, -1.0, 0.0]]  # the last cancel: majority is +
    np.testing.assert_array_equal(kept, np.array(expected, dtype=np.float32))


def test_with_equal_coefficients_it_is_ties_with_the_sum():
    taus = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    statistic = first_pass(lambda: [taus], density=0.4)
    table = {"w": [0.5, 0.5, 0.5]}

    merged = with_coefficients(taus, coefficients=table, name="w", statistic=statistic)

    expected = ties(taus, density=0.4, lam=0.5, aggregate="sum")
    torch.testing.assert_close(merged, expected)


def test_writing_finds_the_majority_that_a_pass_of_its_own_finds():
    taus = torch.randint(-3, 3, (3, 3000), generator=torch.Generator().manual_seed(0)).float()
    blocks = [block.numpy() for block in taus.split(700, dim=1)]
    counted, on_the_way = (first_pass(lambda: blocks, density=0.9) for _ in range(2))

    on_the_way.tally.begin()
    for block in blocks:
        elected(block, on_the_way)
    on_the_way.tally.settle()

    assert counted.majority == on_the_way.majority == -1


def test_the_threshold_is_of_the_whole_vector_not_of_each_tensor():
    ensemble = tiny_ensemble()
    table = adamerging_plus_plus(ensemble, density=0.3, steps=3, rate=0.02)
    whole = torch.cat([ensemble.task_vectors(name).reshape(3, -1) for name in ensemble.tensors], 1)
    kth = int(0.3 * whole.shape[1])
    thresholds = whole.abs().sort(dim=1, descending=True).values[:, kth - 1]
    trimmed = torch.where(whole.abs() >= thresholds[:, None], whole, 0)
    kept = torch.where(trimmed * trimmed.sum(dim=0).sign() > 0, trimmed, 0)

    statistic = first_pass(lambda: [whole], density=0.3)
    start = 0
    for name in ensemble.tensors:
        taus = ensemble.task_vectors(name)
        part = kept[:, start : start + taus[0].numel()].reshape(taus.shape)
        start += taus[0].numel()
        merged = with_coefficients(taus, coefficients=table, name=name, statistic=statistic)
        expected = torch.tensordot(torch.tensor(table[name]), part, dims=1)
        torch.testing.assert_close(merged, expected)
