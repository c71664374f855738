import math

import numpy as np
import pytest
import torch

from momacli.errors import DivergenceError
from momacli.features.adapter import Adapter
from momacli.features.surgery import surgery


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def features():
    """Merged features, and fine-tuned ones that a rotation and a shift lead to."""
    draw = generator()
    merged = torch.randn(80, 6, generator=draw)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw))[0]
    return merged, merged @ turn.mT + 0.5


def test_an_adapter_with_a_zero_up_projection_changes_nothing(features):
    merged, _ = features

    assert torch.equal(Adapter(torch.randn(3, 6), torch.zeros(6, 3))(merged), merged)


def test_before_the_first_step_the_fitted_adapter_changes_nothing(features):
    adapter = surgery(*features, rank=3, steps=0, generator=generator())

    assert torch.equal(adapter(features[0]), features[0])
    assert adapter.down.abs().max() <= 1 / math.sqrt(6)


def test_an_adapter_is_the_papers_formula_in_float64(features):
    z = features[0].double().numpy()
    down, up = np.random.default_rng(0).normal(size=(2, 3, 6))
    adapter = Adapter(torch.tensor(down), torch.tensor(up.T))

    expected = np.array([row - up.T @ np.maximum(down @ row, 0) for row in z])
    np.testing.assert_allclose(adapter(torch.tensor(z)).numpy(), expected, atol=1e-12)


def test_the_first_step_is_adams_along_the_gradient_of_the_mean_absolute_difference(features):
    merged, finetuned = features
    adapter = surgery(
        merged, finetuned, rank=3, steps=1, batch_size=80, rate=0.01, generator=generator()
    )

    z, difference = merged.double().numpy(), (merged - finetuned).double().numpy()
    hidden = np.maximum(z @ adapter.down.double().numpy().T, 0)
    gradient = -np.sign(difference).T @ hidden / difference.size  # of Up, where it is zero
    np.testing.assert_allclose(adapter.up.numpy(), -0.01 * np.sign(gradient), atol=1e-4)


def test_more_steps_and_more_rank_bring_merged_features_nearer(features):
    merged, finetuned = features

    def distance(rank: int, steps: int) -> float:
        adapter = surgery(
            merged, finetuned, rank=rank, steps=steps, rate=0.01, generator=generator()
        )
        return float((adapter(merged) - finetuned).abs().mean())

    assert distance(12, 200) < distance(2, 200) < distance(2, 20) < distance(2, 0)


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(features):
    one, two, other = (
        surgery(*features, rank=3, steps=5, generator=generator(seed)) for seed in (1, 1, 2)
    )

    assert torch.equal(one.up, two.up)
    assert torch.equal(one.down, two.down)
    assert not torch.equal(one.down, other.down)


def test_rank_r_adds_two_r_d_parameters(features):
    assert surgery(*features, rank=4, steps=0, generator=generator()).parameters == 2 * 4 * 6


def test_features_that_are_not_finite_end_the_fit_by_name(features):
    broken = features[1].clone()
    broken[0, 0] = math.nan

    with pytest.raises(DivergenceError, match="not finite"):
        surgery(features[0], broken, steps=10, batch_size=80, generator=generator())


def test_steps_are_told_up_to_the_last(features):
    told = []
    surgery(*features, steps=120, generator=generator(), on_step=lambda *step: told.append(step))

    assert [done for done, _ in told] == [50, 100, 120]
    assert told[-1][1] < told[0][1]
