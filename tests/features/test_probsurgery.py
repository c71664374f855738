import pytest
import torch

from momacli.features.probsurgery import normal_divergence, probsurgery


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def features():
    draw = generator()
    merged = torch.randn(80, 6, generator=draw)
    return merged, merged @ torch.linalg.qr(torch.randn(6, 6, generator=draw))[0].mT


def test_before_the_first_step_the_adapter_changes_nothing(features):
    adapter = probsurgery(*features, rank=5, steps=0, generator=generator())

    assert torch.equal(adapter(features[0]), features[0])


def test_the_divergence_is_that_of_torchs_normal_distributions(features):
    mu, log_variance = features[0], features[1] / 3
    given = torch.distributions.Normal(mu, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros(6), torch.ones(6))

    expected = torch.distributions.kl_divergence(given, standard).sum(dim=1).mean()
    torch.testing.assert_close(normal_divergence(mu, log_variance), expected)


def test_it_is_zero_for_the_standard_normal_distribution_alone():
    zero = torch.zeros(3, 4)

    assert normal_divergence(zero, zero) == 0
    assert normal_divergence(zero + 1, zero) > 0
    assert normal_divergence(zero, zero + 1) > 0


def test_the_fit_under_noise_brings_merged_features_nearer(features):
    merged, finetuned = features
    adapter = probsurgery(merged, finetuned, rank=16, steps=400, rate=0.01, generator=generator())

    before = (merged - finetuned).abs().mean()
    assert (adapter(merged) - finetuned).abs().mean() < 0.8 * before


def test_a_heavy_divergence_holds_the_adapter_near_the_standard_distribution(features):
    def size(weight: float) -> float:
        adapter = probsurgery(
            *features, rank=16, weight=weight, steps=200, rate=0.01, generator=generator()
        )
        return float((adapter(features[0]) - features[0]).norm())

    assert size(10.0) < 0.5 * size(1e-4)


def test_noise_comes_from_the_seed_alone(features):
    one, two, other = (
        probsurgery(*features, rank=3, steps=5, generator=generator(seed)) for seed in (1, 1, 2)
    )

    assert torch.equal(one.up, two.up)
    assert not torch.equal(one.up, other.up)


def test_only_what_is_needed_at_test_is_kept(features):
    adapter = probsurgery(*features, rank=5, steps=1, generator=generator())

    assert adapter.parameters == 2 * 5 * 6
