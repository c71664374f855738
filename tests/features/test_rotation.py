import math

import pytest
import torch

from momacli.features.rotation import closeness, eigenphases


def turned(*degrees: float) -> torch.Tensor:
    """A rotation by an angle in each of several planes that stand on each other."""
    blocks = []
    for angle in map(math.radians, degrees):
        c, s = math.cos(angle), math.sin(angle)
        blocks.append(torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    return torch.block_diag(*blocks)


def features(d: int) -> torch.Tensor:
    return torch.randn(50, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_eigenphases_are_the_angles_of_the_planes_in_whatever_basis():
    basis = torch.linalg.qr(features(6)[:6])[0]

    found = eigenphases(basis @ turned(90, 10, 170) @ basis.mT)

    assert found.tolist() == pytest.approx([10, 10, 90, 90, 170, 170], abs=1e-6)


def test_a_rotation_has_determinant_one_and_turns_all_features_by_its_angle():
    found, phases = closeness(turned(30, 30), features(4))

    assert found.determinant == 1
    assert found.log_determinant == pytest.approx(0, abs=1e-12)
    assert (found.scale, found.from_similarity) == pytest.approx((1, 0), abs=1e-12)
    assert found.turn == pytest.approx(30)
    assert found.from_identity == pytest.approx(2 * math.sin(math.radians(15)))  # a chord
    assert found.median_phase == pytest.approx(found.largest_phase) == pytest.approx(30)
    assert phases.tolist() == pytest.approx([30] * 4)


def test_a_reflection_has_determinant_minus_one_and_a_phase_of_180_degrees():
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))

    found, phases = closeness(mirror, features(3))

    assert found.determinant == -1
    assert phases.tolist() == pytest.approx([0, 0, 180])


def test_a_similarity_is_at_no_distance_and_stretching_one_axis_is():
    similar, _ = closeness(2.5 * turned(40, 80), features(4))
    stretched, _ = closeness(torch.diag(torch.tensor([3.0, 1.0])), features(2))

    assert (similar.scale, similar.from_similarity) == pytest.approx((2.5, 0), abs=1e-12)
    assert similar.log_determinant == pytest.approx(math.log(2.5))
    assert stretched.from_similarity == pytest.approx(math.sqrt(2 / 10))  # |diag(1, -1)| / |A|


def test_a_singular_matrix_has_no_logarithm_of_its_determinant():
    found, _ = closeness(torch.zeros(2, 2), features(2))

    assert (found.determinant, found.log_determinant) == (0, None)
