"""Tests of the Cayley map and of merging rotations."""

import math

import pytest
import torch

from momacli.methods._rotations import (
    cayley,
    cayley_inverse,
    cayley_minus_identity,
    merge_in_lie_algebra,
    nearest_orthogonal,
)


def skew(*shape: int, seed: int = 0) -> torch.Tensor:
    a = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a - a.mT


def test_a_turn_by_phi_has_the_generator_tan_half_phi():
    x = math.tan(math.radians(60) / 2)

    r = cayley(torch.tensor([[0.0, -x], [x, 0.0]]))

    torch.testing.assert_close(r, torch.tensor([[0.5, -(0.75**0.5)], [0.75**0.5, 0.5]]))


def test_the_cayley_map_gives_rotations_and_the_identity_at_zero():
    r = cayley(skew(3, 7, 7))

    torch.testing.assert_close(r @ r.mT, torch.eye(7, dtype=r.dtype).expand(3, 7, 7))
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(3, dtype=r.dtype))
    torch.testing.assert_close(cayley(torch.zeros(4, 4)), torch.eye(4))


def test_the_inverse_returns_the_generator_and_bounds_the_condition():
    a = skew(7, 7)
    r = cayley(a)

    generator, condition = cayley_inverse(r)

    torch.testing.assert_close(generator, a)
    exact = torch.linalg.cond(r + torch.eye(7)).item()
    assert exact <= condition <= 7 * exact


@pytest.mark.parametrize("diagonal", [[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0]])
def test_half_turns_and_reflections_have_no_usable_generator(diagonal):
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q.double()

    _, condition = cayley_inverse(nearest_orthogonal(q * torch.tensor(diagonal) @ q.mT))

    assert not condition < 1e6


def test_small_turns_keep_their_digits():
    a = 1e-12 * skew(5, 5)

    torch.testing.assert_close(cayley_minus_identity(a), 2 * a, rtol=0, atol=1e-21)


def test_the_nearest_orthogonal_matrix_undoes_a_rotation():
    w = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r = cayley(skew(5, 5))

    torch.testing.assert_close(nearest_orthogonal(w.mT @ (w @ r)), r)


def test_merged_generators_keep_the_mean_norm_along_their_sum():
    a = torch.stack([skew(6, 6, seed=seed) for seed in range(3)])

    merged = merge_in_lie_algebra(a)

    c = sum(x.norm() for x in a) / a.sum(dim=0).norm()
    torch.testing.assert_close(merged, c * a.sum(dim=0) / 3)
    torch.testing.assert_close(merged.norm(), (a[0].norm() + a[1].norm() + a[2].norm()) / 3)


def test_opposite_turns_cancel():
    a = skew(6, 6)

    assert not merge_in_lie_algebra(torch.stack([a, -a])).any()
