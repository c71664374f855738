"""Tests of spherical interpolation between two points."""

import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.slerp import slerp


def on_the_arc(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The textbook formula."""
    omega = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


def test_halfway_from_the_base_to_an_expert_at_right_angles_takes_both_times_root_one_half():
    base = torch.tensor([1.0, 0.0])
    expert = torch.tensor([0.0, 2.0])

    merged = base + slerp((expert - base)[None], base=base, t=0.5)

    torch.testing.assert_close(merged, torch.tensor([0.5**0.5, 2 * 0.5**0.5]))


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
def test_two_experts_are_interpolated_along_the_arc_between_their_weights(t):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 5, generator=generator)
    taus = torch.randn(2, 4, 5, generator=generator)

    merged = slerp(taus, base=base, t=t)

    a, b = (base + taus).double().numpy()
    expected = on_the_arc(a, b, t) - base.double().numpy()
    np.testing.assert_allclose(merged.numpy(), expected, atol=2e-6)


def test_the_ends_of_the_arc_are_the_base_and_the_expert():
    generator = torch.Generator().manual_seed(0)
    base, tau = torch.randn(2, 30, generator=generator)

    start = slerp(tau[None], base=base, t=0.0)
    end = slerp(tau[None], base=base, t=1.0)

    torch.testing.assert_close(start, torch.zeros(30))
    torch.testing.assert_close(end, tau)


def test_vectors_of_one_length_keep_it():
    generator = torch.Generator().manual_seed(0)
    base, expert = torch.nn.functional.normalize(torch.randn(2, 30, generator=generator))

    merged = base + slerp((expert - base)[None], base=base, t=0.3)

    torch.testing.assert_close(merged.norm(), torch.tensor(1.0))


def test_directions_closer_than_the_threshold_are_joined_by_a_straight_line():
    base = torch.tensor([1.0, 0.0])
    tau = torch.tensor([0.0, 0.02])  # cosine 0.9998

    merged = slerp(tau[None], base=base, t=0.25)

    torch.testing.assert_close(merged, 0.25 * tau, rtol=0, atol=0)


def test_a_threshold_of_one_follows_the_arc_of_small_angles_too():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, generator=generator)
    tau = 1e-2 * torch.randn(2000, generator=generator)

    merged = slerp(tau[None], base=base, t=0.5, dot_threshold=1.0)

    a, b = base.double().numpy(), (base.double() + tau.double()).numpy()
    np.testing.assert_allclose(merged.numpy(), on_the_arc(a, b, 0.5) - a, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("base", [[-1.0, 2.0], [0.0, 0.0]])
def test_opposite_and_zero_vectors_are_joined_by_a_straight_line(base):
    base = torch.tensor(base)
    expert = torch.tensor([2.0, -4.0])

    merged = base + slerp((expert - base)[None], base=base, t=0.25)

    torch.testing.assert_close(merged, 0.75 * base + 0.25 * expert)


def test_a_third_expert_is_refused():
    with pytest.raises(UsageError, match="at most two experts, found 3"):
        slerp(torch.zeros(3, 2), base=torch.ones(2))
