import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.breadcrumbs import breadcrumbs


def test_entries_between_the_two_percentiles_are_kept():
    tau = torch.tensor([[9.0, -1.0, 2.0, -7.0, 3.0, 4.0, -5.0, 6.0, 8.0, -10.0]])

    merged = breadcrumbs(tau, beta=0.6, gamma=0.9, lam=1.0)

    # of magnitudes 1 to 10, the six smallest and the largest go
    expected = torch.tensor([9.0, 0.0, 0.0, -7.0, 0.0, 0.0, 0.0, 0.0, 8.0, 0.0])
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("size", range(1, 12))
def test_a_small_tensor_is_not_emptied(size: int, per):
    """A share of outliers that rounds to none must not be taken for all of them."""
    taus = torch.arange(1.0, size + 1).expand(1, 3, size)

    merged = breadcrumbs(taus, lam=1.0, per=per)

    assert (merged != 0).any(dim=-1).all()


def test_no_outliers_to_remove_keeps_the_top():
    merged = breadcrumbs(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), beta=0.5, gamma=1.0, lam=1.0)

    torch.testing.assert_close(merged, torch.tensor([0.0, 0.0, 3.0, 4.0]))


def test_percentiles_per_row_judge_each_output_unit_by_itself():
    taus = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [10.0, 40.0, 30.0, 20.0]]])

    merged = breadcrumbs(taus, beta=0.5, gamma=0.75, lam=1.0, per="row")

    torch.testing.assert_close(merged, torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 30.0, 0.0]]))


def test_a_vector_is_one_row():
    tau = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    merged = breadcrumbs(tau, beta=0.5, gamma=0.75, lam=1.0, per="row")

    torch.testing.assert_close(merged, torch.tensor([0.0, 0.0, 3.0, 0.0]))


@pytest.mark.parametrize("n", [50, 100, 1000])
@pytest.mark.parametrize(("beta", "gamma"), [(0.9, 0.99), (0.0, 0.56), (0.29, 1.0), (0.07, 0.57)])
def test_it_agrees_with_sorting_in_numpy(n: int, beta: float, gamma: float):
    taus = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    weights = torch.tensor([1.0, 0.5, 2.0])

    merged = breadcrumbs(taus, beta=beta, gamma=gamma, lam=0.3, weights=weights)

    expected = np.zeros(n)
    for tau, w in zip(taus.numpy().astype(np.float64), weights.tolist(), strict=True):
        ascending = np.argsort(np.abs(tau))
        # whole percents of n: integer arithmetic says how many go on either side
        bottom, top = round(100 * beta) * n // 100, (100 - round(100 * gamma)) * n // 100
        kept = ascending[bottom : n - top]
        expected[kept] += 0.3 * w * tau[kept]
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("beta", "gamma"), [(0.9, 0.9), (0.99, 0.9), (-0.1, 0.5), (0.5, 1.1)])
def test_percentiles_that_leave_nothing_between_are_refused(beta: float, gamma: float):
    with pytest.raises(UsageError, match="beta"):
        breadcrumbs(torch.ones(1, 4), beta=beta, gamma=gamma)
