import numpy as np
import pytest
import torch

from momacli.features.families import FAMILIES, linear, moments, orthogonal, scaling, similarity
from momacli.features.procrustes import orthogonality_error, procrustes


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 60, 5, generator=generator, dtype=torch.float64)


def loss(merged, finetuned, matrix):
    return float((merged @ matrix.mT - finetuned).square().sum())


def test_each_family_recovers_a_planted_member(features):
    merged = features[0]
    q = torch.linalg.qr(features[1][:5])[0]
    planted = {
        "orthogonal": q,
        "similarity": 2.5 * q,
        "scaling": torch.diag(torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)),
        "linear": features[1][:5],
    }

    for name, solve in FAMILIES.items():
        found = solve(moments(merged, merged @ planted[name].mT))[0]
        tolerance = 2e-2 if name == "linear" else 1e-9  # the ridge
        torch.testing.assert_close(found, planted[name], atol=tolerance, rtol=0)


def test_a_wider_family_never_fits_worse(features):
    found = moments(*features)

    losses = {name: loss(*features, solve(found)[0]) for name, solve in FAMILIES.items()}

    assert losses["linear"] <= losses["similarity"] <= losses["orthogonal"]
    assert losses["linear"] <= losses["scaling"] <= loss(*features, torch.eye(5).double())


def test_the_orthogonal_family_is_procrustes(features):
    found = orthogonal(moments(*features))[0]

    torch.testing.assert_close(found, procrustes(*features))
    assert orthogonality_error(found) < 1e-10


def test_the_linear_family_is_least_squares_up_to_its_ridge(features):
    merged, finetuned = features
    expected = np.linalg.lstsq(merged.numpy(), finetuned.numpy(), rcond=None)[0].T

    np.testing.assert_allclose(linear(moments(merged, finetuned))[0], expected, atol=2e-3)


def test_no_other_scale_or_diagonal_fits_better(features):
    found = moments(*features)
    scaled, diagonal = similarity(found)[0], scaling(found)[0]

    for factor in (0.9, 1.1):
        assert loss(*features, scaled * factor) > loss(*features, scaled)
        assert loss(*features, diagonal * factor) > loss(*features, diagonal)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_that_are_all_zero_give_finite_matrices(name):
    zero = torch.zeros(4, 3)

    assert torch.isfinite(FAMILIES[name](moments(zero, zero))).all()
