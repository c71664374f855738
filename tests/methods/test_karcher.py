"""Tests of the Karcher mean."""

import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.karcher import karcher
from momacli.methods.slerp import slerp


def unit_vectors(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator) + 0.5)


def test_the_mean_of_the_axes_is_the_diagonal():
    merged = karcher(torch.eye(3), base=torch.zeros(3))

    torch.testing.assert_close(merged, torch.full((3,), 3**-0.5))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_two_experts_of_one_length_meet_on_the_arc_between_them(share):
    base = torch.randn(12, generator=torch.Generator().manual_seed(1))
    taus = unit_vectors(2, 12) - base

    merged = karcher(taus, base=base, weights=torch.tensor([1 - share, share]))

    torch.testing.assert_close(merged, slerp(taus, base=base, t=share))


@pytest.mark.parametrize("center", ["base", "zero"])
def test_the_pulls_of_the_experts_balance_at_the_mean(center):
    generator = torch.Generator().manual_seed(2)
    base = 0.3 * torch.randn(20, generator=generator)
    taus = torch.randn(5, 20, generator=generator) + 1
    w = np.array([1.0, 2.0, 3.0, 1.0, 1.0]) / 8

    merged = karcher(taus, base=base, weights=torch.tensor(w), center=center)

    origin = base.double().numpy() if center == "zero" else 0.0
    v = taus.double().numpy() + origin
    norms = np.linalg.norm(v, axis=1)
    mean = merged.double().numpy() + origin
    m, u = mean / np.linalg.norm(mean), v / norms[:, None]
    theta = np.arccos(u @ m)
    logs = (theta / np.sin(theta))[:, None] * (u - (u @ m)[:, None] * m)
    np.testing.assert_allclose(w @ logs, 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(mean), w @ norms, rtol=1e-6)


def test_few_steps_stop_short_of_the_mean_of_uneven_directions():
    taus = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.5, 0.2, 1.0]])

    none = karcher(taus, base=torch.zeros(3), max_steps=0)
    some = karcher(taus, base=torch.zeros(3), max_steps=3)
    full = karcher(taus, base=torch.zeros(3))

    assert (some - full).norm() < 0.1 * (none - full).norm()


def test_equal_experts_are_their_own_mean():
    base = torch.randn(50, generator=torch.Generator().manual_seed(0))
    tau = 1e-3 * unit_vectors(1, 50)

    merged = karcher(tau.expand(3, 50), base=base)

    torch.testing.assert_close(merged, tau[0])


def test_an_expert_without_a_direction_only_shortens_the_result():
    taus = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])

    merged = karcher(taus, base=torch.zeros(2))

    torch.testing.assert_close(merged, torch.full((2,), 2 * 0.5**0.5))


def test_directions_that_cancel_leave_the_weighted_mean_in_any_order():
    taus = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])

    merged = karcher(taus, base=torch.zeros(2))
    reversed_order = karcher(taus.flip(0), base=torch.zeros(2))

    torch.testing.assert_close(merged, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(reversed_order, merged)


def test_negative_weights_are_refused():
    with pytest.raises(UsageError, match="not negative"):
        karcher(torch.eye(2), base=torch.zeros(2), weights=torch.tensor([2.0, -1.0]))


def test_numbers_have_two_directions_and_the_more_frequent_one_wins():
    taus = torch.tensor([[3.0], [2.0], [-1.0]])

    merged = karcher(taus, base=torch.zeros(1))

    torch.testing.assert_close(merged, torch.tensor([2.0]))
