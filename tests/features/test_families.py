import numpy as np
import pytest
import torch

from momacli.features.families import (
    CONDITION,
    FAMILIES,
    RIDGE,
    TABLE_1,
    invertible,
    linear,
    moments,
    orthogonal,
    scaling,
    similarity,
)
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


def test_a_prior_is_as_many_samples_along_each_axis_that_stay_as_they_are(features):
    merged, finetuned = features[:, :3]
    size = merged.square().mean().sqrt()
    staying = (size * torch.eye(5, dtype=torch.float64)).repeat(7, 1)

    found = orthogonal(moments(merged, finetuned, prior=7.0))[0]

    shown = [torch.cat([one, staying]) for one in (merged, finetuned)]
    torch.testing.assert_close(found, procrustes(*shown))


def test_of_directions_without_samples_a_prior_leaves_each_as_it_is():
    merged = torch.eye(6, dtype=torch.float64)[:2]
    finetuned = merged.flip(0)  # the first two axes change places, of the others nothing is known

    found = orthogonal(moments(merged, finetuned, prior=0.1))[0]

    expected = torch.eye(6, dtype=torch.float64)
    expected[:2] = expected[[1, 0]]
    torch.testing.assert_close(found, expected)


def test_for_linear_maps_a_prior_is_samples_that_the_similarity_maps(features):
    merged, finetuned = features[:, :20]
    rigid = similarity(moments(merged, finetuned, prior=7.0))[0]
    size = merged.square().mean().sqrt()
    staying = (size * torch.eye(5, dtype=torch.float64)).repeat(7, 1)
    shown = torch.cat([merged, staying]), torch.cat([finetuned, staying @ rigid.mT])

    found = linear(moments(merged, finetuned, prior=7.0))[0]

    expected = np.linalg.lstsq(*(one.numpy() for one in shown), rcond=None)[0].T
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the ridge


def test_of_few_samples_a_prior_finds_the_linear_map_that_holds_for_others():
    generator = torch.Generator().manual_seed(0)
    merged = torch.randn(400, 40, generator=generator, dtype=torch.float64)
    finetuned = merged + 0.5 * torch.randn(400, 40, generator=generator, dtype=torch.float64)

    def error(prior: float) -> float:
        map_ = linear(moments(merged[:50], finetuned[:50], prior=prior))[0]
        return loss(merged[50:], finetuned[50:], map_)

    assert error(30.0) < 0.5 * error(0.0)


@pytest.mark.parametrize("family", ["orthogonal", "similarity", "linear"])
def test_the_more_samples_the_less_a_prior_weighs(features, family):
    distances = []
    for copies in (1, 10, 100):
        merged, finetuned = (one[:20].repeat(copies, 1) for one in features)
        without, with_one = (
            FAMILIES[family](moments(merged, finetuned, prior=prior))[0] for prior in (0.0, 30.0)
        )
        distances.append(float((without - with_one).norm()))

    assert distances[0] > 3 * distances[1] > 9 * distances[2] > 0


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


def loss_of(name, merged, finetuned):
    return float((TABLE_1[name](merged, finetuned)(merged) - finetuned).square().sum())


@pytest.mark.parametrize("samples", [60, 3], ids=["many samples", "fewer samples than dimensions"])
def test_each_family_of_table_1_fits_no_worse_than_those_it_contains(features, samples):
    merged, finetuned = features[:, :samples]

    losses = {name: loss_of(name, merged, finetuned) for name in TABLE_1}

    assert losses["affine"] <= losses["linear"] <= losses["similarity"] <= losses["orthogonal"]


def test_a_planted_rotation_is_recovered_exactly_by_every_family_that_holds_it(features):
    merged = features[0]
    q = torch.linalg.qr(features[1][:5])[0]

    for name in ("affine", "linear", "invertible", "similarity", "orthogonal"):
        found = TABLE_1[name](merged, merged @ q.mT)
        torch.testing.assert_close(found.matrix, q, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.offset, torch.zeros(5).double(), atol=1e-9, rtol=0)


def test_the_affine_family_is_least_squares_with_a_constant_up_to_its_ridge(features):
    merged, finetuned = features[0] + 3, features[1] - 2
    ones = np.ones((len(merged), 1))
    expected = np.linalg.lstsq(np.hstack([merged, ones]), finetuned.numpy(), rcond=None)[0].T

    found = TABLE_1["affine"](merged, finetuned)

    np.testing.assert_allclose(found.matrix, expected[:, :-1], atol=2e-2)
    np.testing.assert_allclose(found.offset, expected[:, -1], atol=5e-2)


def test_the_ridge_draws_the_linear_family_to_the_similarity(features):
    merged, finetuned = features.numpy()
    prior = similarity(moments(*features))[0].numpy()
    strength = np.sqrt(RIDGE * np.mean(np.square(merged)) * len(merged))
    rows = np.vstack([merged, strength * np.eye(5)])  # |A z_m - z_t|^2 + ridge |A - prior|^2
    expected = np.linalg.lstsq(rows, np.vstack([finetuned, strength * prior.T]), rcond=None)[0].T

    np.testing.assert_allclose(linear(moments(*features))[0], expected, atol=1e-10)


def test_the_invertible_family_is_the_linear_one_with_an_inverse_that_can_be_computed(features):
    merged, finetuned = features
    flat = finetuned.clone()
    flat[:, 0] = 0  # the best linear map is singular

    for given in (moments(merged, finetuned), moments(merged, flat), moments(merged, 0 * flat)):
        values = torch.linalg.svdvals(invertible(given)[0])
        assert values[-1] > 0
        assert values[0] / values[-1] <= CONDITION * (1 + 1e-9)
    well = moments(merged, finetuned)
    torch.testing.assert_close(invertible(well), linear(well))
    assert loss_of("invertible", merged, flat) < loss_of("linear", merged, flat) * (1 + 1e-3)


@pytest.mark.parametrize("name", TABLE_1)
def test_features_that_are_all_zero_give_finite_maps(name):
    zero = torch.zeros(4, 3)

    assert torch.isfinite(TABLE_1[name](zero, zero)(zero)).all()
