"""Tests of normalized-weight spherical interpolation."""

import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.nuslerp import nuslerp
from momacli.methods.slerp import slerp

BASE = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, 1.0]])


def two_task_vectors() -> torch.Tensor:
    return torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))


def test_a_weight_twice_as_large_goes_two_thirds_of_the_way():
    taus = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    merged = nuslerp(taus, base=torch.zeros(2), weights=torch.tensor([1.0, 2.0]))

    torch.testing.assert_close(merged, torch.tensor([0.5, 0.75**0.5]))  # sin 30, sin 60 degrees


def test_experts_and_weights_may_change_places_together():
    taus = two_task_vectors()
    weights = torch.tensor([0.2, 0.5])

    merged = nuslerp(taus, base=BASE, weights=weights)
    swapped = nuslerp(taus.flip(0), base=BASE, weights=weights.flip(0))

    torch.testing.assert_close(merged, swapped)


def test_centered_at_zero_it_is_slerp_between_the_experts():
    taus = two_task_vectors()

    merged = nuslerp(taus, base=BASE, weights=torch.tensor([3.0, 1.0]), center="zero")

    torch.testing.assert_close(merged, slerp(taus, base=BASE, t=0.25, dot_threshold=1.0))


@pytest.mark.parametrize("center", ["base", "zero"])
def test_rows_are_interpolated_each_by_its_own_angle(center):
    taus = two_task_vectors()

    merged = nuslerp(taus, base=BASE, per="row", center=center)

    for i in range(2):
        row = nuslerp(taus[:, i], base=BASE[i], center=center)
        torch.testing.assert_close(merged[i], row)


@pytest.mark.parametrize("center", ["base", "zero"])
def test_columns_are_the_rows_of_the_transpose(center):
    taus = two_task_vectors()

    merged = nuslerp(taus, base=BASE, per="column", center=center)

    transposed = nuslerp(taus.mT, base=BASE.mT, per="row", center=center)
    torch.testing.assert_close(merged, transposed.mT)


def test_parallel_rows_beside_others_are_interpolated_linearly():
    taus = torch.tensor(
        [[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[3.0, 3.0], [0.0, 1.0], [2.0, 0.0]]]
    )

    merged = nuslerp(taus, base=torch.zeros(3, 2), per="row")

    half = 0.5**0.5
    torch.testing.assert_close(merged, torch.tensor([[2.0, 2.0], [half, half], [1.0, 0.0]]))


def test_weights_that_cancel_count_as_equal():
    taus = two_task_vectors()

    merged = nuslerp(taus, base=BASE, weights=torch.tensor([1.0, -1.0]))

    torch.testing.assert_close(merged, nuslerp(taus, base=BASE))


def test_a_single_expert_comes_back_times_lambda():
    tau = two_task_vectors()[:1]

    torch.testing.assert_close(nuslerp(tau, base=BASE, lam=0.5), 0.5 * tau[0])


def test_a_third_expert_is_refused():
    with pytest.raises(UsageError, match="at most two experts, found 3"):
        nuslerp(torch.zeros(3, 2), base=torch.ones(2))
