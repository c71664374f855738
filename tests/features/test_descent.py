"""The fits with hand-written gradients, against the same written with autograd in float64."""

from itertools import islice

import pytest
import torch

from momacli.data.order import in_rounds
from momacli.errors import DivergenceError
from momacli.features.adapter import new_down
from momacli.features.aligned_c import aligned_c
from momacli.features.descent import Pace, compiled_adam, descend, torch_adam
from momacli.features.probsurgery import normal_divergence, probsurgery
from momacli.features.surgery import surgery
from momacli.models.interface import Head
from momacli.models.separate_head import unit_norm

STEPS, BATCH, RATE = 25, 8, 0.02
NEAR = {"rtol": 1e-4, "atol": 1e-5}  # of float32, over all steps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def features():
    draw = generator()
    merged = torch.randn(50, 6, generator=draw)
    return merged, merged @ torch.linalg.qr(torch.randn(6, 6, generator=draw))[0].mT + 0.3


def by_autograd(parameters, loss, draw):
    """Move float64 parameters as published: autograd's gradients and torch's own Adam."""
    optimizer = torch.optim.Adam([value.requires_grad_(True) for value in parameters], lr=RATE)
    for indices in islice(in_rounds(50, BATCH, draw), STEPS):
        optimizer.zero_grad()
        loss(indices).backward()
        optimizer.step()
    return [value.detach() for value in parameters]


def test_surgerys_steps_are_those_of_autograd(features):
    z_m, z_t = (z.double() for z in features)
    draw = generator(1)
    down, up = new_down(3, features[0], draw).double(), torch.zeros(6, 3, dtype=torch.float64)

    def loss(i):
        return (z_m[i] - torch.relu(z_m[i] @ down.mT) @ up.mT - z_t[i]).abs().mean()

    expected = by_autograd([down, up], loss, draw)
    found = surgery(
        *features, rank=3, steps=STEPS, batch_size=BATCH, rate=RATE, generator=generator(1)
    )
    torch.testing.assert_close([found.down.double(), found.up.double()], expected, **NEAR)


def test_probsurgerys_steps_are_those_of_autograd(features):
    z_m, z_t = (z.double() for z in features)
    draw = generator(1)
    down, zero = new_down(3, features[0], draw).double(), torch.zeros(6, 3, dtype=torch.float64)
    mean, spread = zero.clone(), zero.clone()

    def loss(i):
        hidden = torch.relu(z_m[i] @ down.mT)
        mu, log_variance = hidden @ mean.mT, hidden @ spread.mT
        epsilon = torch.randn(len(i), 6, generator=draw).double()
        zeta = mu + epsilon * (log_variance / 2).exp()
        return (z_m[i] - zeta - z_t[i]).abs().mean() + 0.1 * normal_divergence(mu, log_variance)

    expected = by_autograd([down, mean, spread], loss, draw)[:2]
    found = probsurgery(
        *features, rank=3, weight=0.1, steps=STEPS, batch_size=BATCH, rate=RATE,
        generator=generator(1),
    )  # fmt: skip
    torch.testing.assert_close([found.down.double(), found.up.double()], expected, **NEAR)


@pytest.mark.parametrize("rest", [None, torch.tanh])
@pytest.mark.parametrize("before", [None, unit_norm])
def test_the_steps_of_a_trained_head_are_those_of_autograd(features, rest, before):
    weight, bias = torch.randn(4, 6, generator=generator(2)), torch.ones(4)
    z_m, z_t = (z.double() for z in features)
    answers = Head(weight.double(), bias.double(), rest, before)(z_t).softmax(dim=1)
    scale = weight.double().norm(dim=1).mean() if before else 1.0
    rows, shift = weight.double() / scale, bias.double()

    def loss(i):
        found = Head(scale * rows, shift, rest, before)(z_m[i]).log_softmax(dim=1)
        return (answers[i] * (answers[i].log() - found)).sum(dim=1).mean()

    expected = by_autograd([rows, shift], loss, generator(1))
    found = aligned_c(
        *features, Head(weight, bias, rest, before), steps=STEPS, batch_size=BATCH, rate=RATE,
        generator=generator(1),
    )  # fmt: skip
    torch.testing.assert_close(
        [found.weight.double(), found.bias.double()], [scale * expected[0], expected[1]], **NEAR
    )


def test_where_there_is_no_compiled_loop_torchs_adam_makes_the_same_steps():
    slopes = torch.randn(30, 5, 4, generator=generator()) ** 3
    values = [torch.ones(5, 4) for _ in range(2)]
    moves = [compiled_adam([values[0]], 0.01), torch_adam([values[1]], 0.01)]
    for slope in slopes:
        for move in moves:
            move([slope.clone()])

    torch.testing.assert_close(values[0], values[1])
    assert not torch.equal(values[0], torch.ones(5, 4))


def test_a_rate_that_no_loss_bears_is_an_error_that_says_so():
    value = torch.ones(3)

    def differentiate(_indices):
        return value.sum, [torch.full((3,), torch.nan)]

    with pytest.raises(DivergenceError, match="the loss is not finite"):
        descend([value], differentiate, 4, Pace(60, 2, 1.0), generator())
