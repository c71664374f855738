import math

import pytest
import torch

from momacli.features.families import moments, orthogonal
from momacli.features.procrustes import orthogonality_error, polar_factor
from momacli.features.seen import rotations_seen, seen_by


@pytest.fixture
def features():
    """Features of 40 samples with a large mean, and what another encoder makes of them."""
    generator = torch.Generator().manual_seed(0)
    merged = torch.randn(40, 6, generator=generator, dtype=torch.float64) + 2
    wanted = merged @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return merged, wanted


@pytest.fixture
def pair(features):
    """C and G of those features."""
    merged, wanted = features
    return wanted.mT @ merged / 40, merged.mT @ merged / 40


@pytest.fixture
def seen():
    """What a head of three classes sees."""
    return seen_by(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)), softmax=True)


def rotation_seen(cross, gram, seen, start=None):
    """That of a single task."""
    [found] = rotations_seen(
        cross[None], gram[None], [seen], None if start is None else start[None]
    )
    return found


def rotations(count, size):
    """Small rotations, each another way."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        step = 0.03 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
        yield torch.linalg.matrix_exp((step - step.mT)[:size, :size])


def test_a_head_sees_the_row_space_of_its_weights():
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [3, 0, 0, 0]])

    seen = seen_by(weight, softmax=False)

    torch.testing.assert_close(seen @ seen.mT, torch.diag(torch.tensor([1.0, 1, 0, 0])).double())


def test_softmax_does_not_see_what_is_common_to_all_rows():
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    common = torch.randn(6, generator=torch.Generator().manual_seed(1))

    bases = [seen_by(one, softmax=True) for one in (weight, weight + common)]

    assert [tuple(basis.shape) for basis in bases] == [(6, 2), (6, 2)]
    torch.testing.assert_close(*(basis @ basis.mT for basis in bases), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_of_weights_without_a_direction_nothing_is_seen(value):
    assert seen_by(torch.full((3, 6), value), softmax=False).shape == (6, 0)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_head_that_sees_all_or_nothing_leaves_the_best_map_of_all_of_the_space(pair, rank):
    found = rotation_seen(*pair, torch.eye(6, dtype=torch.float64)[:, :rank])

    torch.testing.assert_close(found, polar_factor(pair[0]))


@pytest.mark.parametrize("seed", range(5))
def test_of_two_features_it_is_the_direction_that_a_search_over_all_angles_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    merged, noise = torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)
    merged *= torch.tensor([5.0, 1.0])
    wanted = merged @ torch.tensor([[1.0, 2.0], [-0.5, 1.0]]).double() + noise
    seen = torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    angles = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    frames = torch.stack([angles.cos(), angles.sin()])
    best = (merged @ frames - wanted @ seen).square().sum(dim=0).argmin()

    A = rotation_seen(wanted.mT @ merged, merged.mT @ merged, seen)

    torch.testing.assert_close((A.mT @ seen)[:, 0], frames[:, best], atol=1e-4, rtol=0)


def test_no_rotation_nearby_brings_what_is_seen_closer(features, pair, seen):
    merged, wanted = features
    A = rotation_seen(*pair, seen)

    def distance(A):
        return ((merged @ A.mT - wanted) @ seen).square().sum().item()

    assert orthogonality_error(A) < 1e-12
    assert distance(A) < 0.9 * distance(polar_factor(pair[0]))
    assert all(distance(A @ nearby) > distance(A) for nearby in rotations(50, 6))


def test_the_rest_is_rotated_as_well_as_can_be(features, pair, seen):
    merged, wanted = features
    A = rotation_seen(*pair, seen)
    rest = torch.linalg.qr(seen, mode="complete")[0][:, 2:]

    def distance(A):
        return ((merged @ A.mT - wanted) @ rest).square().sum().item()

    for nearby in rotations(50, 4):
        turned = seen @ seen.mT + rest @ nearby @ rest.mT
        assert distance(turned @ A) > distance(A)


def test_a_rotation_of_features_is_found(features, seen):
    merged, _ = features
    turn = polar_factor(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double())
    wanted = merged @ turn.mT

    found = rotation_seen(wanted.mT @ merged, merged.mT @ merged, seen)

    torch.testing.assert_close(found, turn, atol=1e-9, rtol=0)


def test_a_search_goes_on_from_a_solution_nearby(pair, seen):
    cross, gram = pair
    start = rotation_seen(1.001 * cross, gram, seen)

    torch.testing.assert_close(
        rotation_seen(cross, gram, seen, start), rotation_seen(cross, gram, seen), atol=1e-3, rtol=0
    )


def test_a_prior_is_as_many_samples_of_what_is_seen(features, seen):
    merged, wanted = features
    p = 7 * merged.square().mean().sqrt() ** 2
    added = p.sqrt() * torch.eye(6, dtype=torch.float64)
    more = [torch.cat([one, added]) for one in (merged, wanted)]
    given = moments(merged, wanted, prior=7.0)

    [found] = orthogonal(type(given)(given.cross, given.gram, given.prior, [seen]))

    expected = rotation_seen(more[1].mT @ more[0] / 40, more[0].mT @ more[0] / 40, seen)
    torch.testing.assert_close(found, expected)
