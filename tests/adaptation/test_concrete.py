import math

import pytest
import torch
from torch.distributions import RelaxedBernoulli

from momacli.adaptation.concrete import (
    ConcreteMask,
    Logits,
    compiled_step,
    mean_of,
    pull_back,
    relaxed_bernoulli,
    torch_step,
)
from momacli.adaptation.leaves import LOSS_SCALE

LONG = 300_000  # entries: more than are computed at once


def numbers(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def drawn_mask(slices):
    mask = ConcreteMask(slices, start=0.3, temperature=2.0, device=torch.device("cpu"))
    mask.draw(numbers)
    return mask


def test_draws_have_the_distribution_of_torchs_relaxed_bernoulli():
    x = torch.full((40_000,), 0.7)
    found = relaxed_bernoulli(x, numbers(len(x)), 0.5).sort().values
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


def test_a_mask_has_mean_one_in_every_tensor():
    mask = drawn_mask([slice(0, 1000), slice(1000, LONG)])

    for part in (slice(0, 1000), slice(1000, LONG)):
        m = torch.empty(part.stop - part.start)
        mask.masked(part, torch.ones_like(m), out=m)
        assert math.isclose(float(m.double().mean()), 1.0, rel_tol=1e-5)


def test_a_draw_is_finite_even_where_the_random_number_is_zero_or_one():
    x = torch.zeros(3)
    drawn = relaxed_bernoulli(x, torch.tensor([0.0, 0.5, 1.0]), 0.01)

    assert drawn.isfinite().all()
    assert (1 / mean_of(torch.zeros(3))).isfinite()


@pytest.mark.parametrize("step", [compiled_step, torch_step])
def test_the_steps_of_a_mask_are_adams_in_float64(step):
    u, tau, gradient = numbers(5000, 0), numbers(5000, 1) - 0.5, numbers(5000, 2) - 0.5
    logits = Logits(torch.full_like(u, 0.3), *torch.zeros(3, len(u)))
    x = logits.x.double().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=0.01)
    for number in (1, 2, 3):
        logits.s[:] = relaxed_bernoulli(logits.x, u.clone(), 2.0)
        step(logits, LOSS_SCALE * number * gradient, tau, 2.0, 0.01, number)
        s = torch.sigmoid((x + torch.logit(u.double())) / 2)
        adam.zero_grad()
        ((s / s.mean()) @ (number * gradient * tau).double()).backward()
        adam.step()

    torch.testing.assert_close(logits.x.double(), x.detach(), atol=1e-4, rtol=1e-4)
