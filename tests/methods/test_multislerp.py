"""Tests of Multi-SLERP."""

import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.multislerp import multislerp
from momacli.methods.nuslerp import nuslerp


def with_the_tangent_step(v: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mergekit's three steps: to the tangent space at the mean, average, back to the sphere."""
    norms = np.linalg.norm(v, axis=1)
    u = v / norms[:, None]
    m = w @ u / np.linalg.norm(w @ u)
    tangent = w @ (u - (u @ m)[:, None] * m)
    length = np.linalg.norm(tangent) + 1e-12
    return (w @ norms) * (np.cos(length) * m + np.sin(length) / length * tangent)


def test_the_mean_length_is_laid_along_the_mean_direction():
    taus = torch.tensor([[3.0, 0.0], [0.0, 4.0]])

    merged = multislerp(taus, base=torch.zeros(2))

    torch.testing.assert_close(merged, torch.full((2,), 3.5 * 0.5**0.5))


@pytest.mark.parametrize("center", ["base", "zero"])
def test_mergekits_step_in_the_tangent_space_changes_nothing(center):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, generator=generator)
    taus = torch.randn(4, 20, generator=generator)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])

    merged = multislerp(taus, base=base, weights=weights, center=center)

    origin = base.double().numpy() if center == "zero" else 0.0
    expected = with_the_tangent_step(taus.double().numpy() + origin, weights.numpy() / 10) - origin
    np.testing.assert_allclose(merged.numpy(), expected, atol=2e-6)


def test_two_experts_of_one_length_meet_halfway_on_the_arc():
    taus = torch.nn.functional.normalize(
        torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    )

    merged = multislerp(taus, base=torch.zeros(12))

    torch.testing.assert_close(merged, nuslerp(taus, base=torch.zeros(12)))


def test_directions_that_cancel_leave_the_weighted_mean():
    taus = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])

    merged = multislerp(taus, base=torch.zeros(2))

    torch.testing.assert_close(merged, torch.tensor([-1.0, 0.0]))


def test_an_expert_equal_to_the_base_shortens_the_result_and_does_not_turn_it():
    taus = torch.tensor([[3.0, 4.0], [0.0, 0.0]])

    merged = multislerp(taus, base=torch.ones(2))

    torch.testing.assert_close(merged, torch.tensor([1.5, 2.0]))


def test_weights_that_sum_to_zero_are_refused():
    with pytest.raises(UsageError, match="sum to zero"):
        multislerp(torch.eye(2), base=torch.zeros(2), weights=torch.tensor([1.0, -1.0]))
