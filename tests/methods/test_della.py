import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods._random_mask import Draws
from momacli.methods.della import della


def seeded(count: int) -> list[Draws]:
    return [Draws(f"expert {t}") for t in range(count)]


def test_larger_entries_of_a_row_survive_more_often():
    rows = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0]).expand(1, 20_000, 5)

    merged = della(rows, draws=seeded(1), density=0.5, epsilon=0.2)

    # 0.5 - 0.2 for the smallest to 0.5 + 0.2 for the largest, in even steps
    survived = (merged != 0).float().mean(dim=0)
    expected = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7])
    torch.testing.assert_close(survived, expected, rtol=0, atol=0.015)


def test_a_survivor_is_divided_by_its_own_probability():
    rows = torch.tensor([1.0, -2.0, 3.0]).expand(1, 1000, 3)

    merged = della(rows, draws=seeded(1), density=0.5, epsilon=0.25, lam=1.0)

    expected = torch.tensor([1 / 0.25, -2 / 0.5, 3 / 0.75])
    torch.testing.assert_close(merged.sum(dim=0) / (merged != 0).sum(dim=0), expected)


def test_survivors_against_the_elected_sign_are_dropped_from_the_mean():
    taus = torch.tensor([[4.0, -1.0], [2.0, -3.0], [-1.0, 2.0]])

    merged = della(taus, draws=seeded(3), density=1.0, epsilon=0.0, lam=1.0)

    torch.testing.assert_close(merged, torch.tensor([3.0, -2.0]))


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_it_agrees_with_the_formula_written_in_numpy(per):
    taus = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))

    merged = della(taus, draws=seeded(3), density=0.6, epsilon=0.3, lam=1.5, per=per)

    pruned = []
    for tau, generator in zip(taus.numpy().astype(np.float64), seeded(3), strict=True):
        row_length = 8 if per == "row" else 40
        rows = tau.reshape(-1, row_length)
        rank = (np.abs(rows)[:, None, :] < np.abs(rows)[:, :, None]).sum(axis=2)
        q = 0.3 + 0.6 * rank / (row_length - 1)
        drawn = generator.uniform(40).reshape(rows.shape)
        pruned.append(np.where(drawn < q, rows / q, 0).reshape(5, 8))
    elected = np.sign(np.sum(pruned, axis=0))
    agreeing = [np.where(tau * elected > 0, tau, 0) for tau in pruned]
    count = np.maximum(1, np.count_nonzero(agreeing, axis=0))
    np.testing.assert_allclose(merged.numpy(), 1.5 * np.sum(agreeing, axis=0) / count, rtol=1e-5)


def test_with_l1_every_task_vector_keeps_its_sum_of_magnitudes():
    tau = torch.randn(1, 30, 40, generator=torch.Generator().manual_seed(0))

    merged = della(tau, draws=seeded(1), density=0.4, epsilon=0.1, lam=1.0, rescale="l1")

    assert 0.5 < (merged == 0).float().mean() < 0.7
    torch.testing.assert_close(merged.abs().sum(), tau.abs().sum())


def test_a_row_of_one_entry_is_kept_with_the_mean_probability():
    merged = della(torch.ones(1, 20_000, 1), draws=seeded(1), density=0.5, epsilon=0.4)

    assert (merged != 0).float().mean().item() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.95, 0.1), (0.5, -0.1)])
def test_a_window_that_leaves_0_to_1_is_refused(density: float, epsilon: float):
    with pytest.raises(UsageError, match="epsilon"):
        della(torch.ones(1, 2), draws=seeded(1), density=density, epsilon=epsilon)
