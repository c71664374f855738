import math

import torch
from torch.distributions import RelaxedBernoulli

from momacli.adaptation.concrete import pull_back, relaxed_bernoulli, rescaled


def test_draws_have_the_distribution_of_torchs_relaxed_bernoulli():
    x = torch.full((40_000,), 0.7)
    found = relaxed_bernoulli(x, 0.5, torch.Generator().manual_seed(0)).sort().values
    torch.manual_seed(1)
    expected = RelaxedBernoulli(torch.tensor(0.5), logits=x).sample().sort().values

    # two samples of one distribution: the Kolmogorov-Smirnov distance at this size
    assert (found - expected).abs().mean() < 0.01
    assert math.isclose(float((found > 0.5).float().mean()), torch.sigmoid(x[0]), abs_tol=0.01)


def test_the_gradient_is_autograds_through_the_relaxation_and_the_mean():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, generator=generator).double().requires_grad_(True)
    u = torch.rand(30, generator=generator).double()
    h = torch.randn(30, generator=generator).double()
    s = torch.sigmoid((x + torch.logit(u)) / 0.5)
    (s / s.mean() @ h).backward()

    torch.testing.assert_close(pull_back(h, s.detach(), 0.5), x.grad)


def test_a_mask_has_mean_one():
    s = torch.rand(1000, generator=torch.Generator().manual_seed(0))

    assert math.isclose(float(rescaled(s).mean()), 1.0, rel_tol=1e-5)


def test_a_draw_is_finite_even_where_the_random_number_is_zero():
    x = torch.zeros(200_000)
    drawn = relaxed_bernoulli(x, 0.01, torch.Generator().manual_seed(0))

    assert drawn.isfinite().all()
    assert rescaled(torch.zeros(3)).isfinite().all()
