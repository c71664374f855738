import pytest
import torch

from momacli.features.embedding import FEWEST, embed


@pytest.fixture(scope="module")
def places():
    """Two far clouds of 20 points each, in the plane."""
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    features[20:] += 50
    return features, embed(features, seed=3)


def test_points_that_are_far_stay_apart(places):
    _, found = places
    first, second = found[:20].mean(dim=0), found[20:].mean(dim=0)

    assert (found[:20] - first).norm(dim=1).max() < (first - second).norm()


def test_a_seed_gives_the_same_places(places):
    features, found = places

    assert torch.equal(embed(features, seed=3), found)


def test_few_points_and_points_that_are_all_the_same_have_places():
    assert torch.isfinite(embed(torch.randn(FEWEST, 3), seed=0)).all()
    assert torch.isfinite(embed(torch.ones(FEWEST, 3), seed=0)).all()
