import math

import torch
from torch.distributions import RelaxedBernoulli

from momacli.adaptation.concrete import ConcreteMask, mean_of, pull_back, relaxed_bernoulli
from momacli.adaptation.leaves import LOSS_SCALE, blocks

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

    s = s.detach()
    offset = (h @ s) / (len(s) * s.mean())
    torch.testing.assert_close(pull_back(h, s, s.mean(), offset, 0.5), x.grad)


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


def test_the_steps_of_a_mask_are_adams_in_float64_whatever_is_computed_at_once():
    slices = [slice(0, 5), slice(5, LONG)]
    tau, gradient = numbers(LONG, 1) - 0.5, numbers(LONG, 2) - 0.5
    mask = drawn_mask(slices)
    x = torch.full((LONG,), 0.3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.01)
    for _ in range(2):
        adam.zero_grad()
        masked = torch.zeros((), dtype=torch.float64)
        for part in slices:
            mask.step(part, LOSS_SCALE * gradient[part], tau[part], rate=0.01)
            u = torch.cat([numbers(piece.stop - piece.start) for piece in blocks(part)]).double()
            s = torch.sigmoid((x[part] + torch.logit(u)) / 2)
            masked += (s / s.mean()) @ (gradient[part] * tau[part]).double()
        masked.backward()
        adam.step()
        mask.draw(numbers)

    # where a gradient is all but zero its sign, which is Adam's first step, is one of rounding
    near = torch.isclose(mask.x.double(), x, atol=1e-5)
    assert near.double().mean() > 0.9999
