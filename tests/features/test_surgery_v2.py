from itertools import islice

import numpy as np
import pytest
import torch

from momacli.data.order import in_rounds
from momacli.features.adapter import Adapter, adapter_of, new_down
from momacli.features.surgery_v2 import surgery_v2

RANK, BATCH, RATE = 2, 8, 0.02


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Tokens:
    """An encoder of two blocks, tanh(x W), whose features are its first token."""

    def __init__(self, seed: int):
        draw = generator(seed)
        self.x = torch.randn(40, 3, 4, generator=generator())
        self.weights = [torch.randn(4, 5, generator=draw), torch.randn(5, 6, generator=draw)]

    def __call__(self, indices, adapters=()):
        x, means = self.x[indices], []
        for number, weight in enumerate(self.weights):
            x = torch.tanh(x @ weight)
            x = adapters[number](x) if adapters else x
            means.append(x.mean(dim=1))
        return means, x[:, 0]


@pytest.fixture(scope="module")
def merged():
    return Tokens(1)


@pytest.fixture(scope="module")
def wanted():
    means, features = Tokens(2)(torch.arange(40))
    return [*means, features]


def fit(merged, wanted, steps, seed=0) -> Adapter:
    return surgery_v2(
        merged, wanted, rank=RANK, steps=steps, batch_size=BATCH, rate=RATE,
        generator=generator(seed),
    )  # fmt: skip


def test_before_the_first_step_nothing_is_changed_at_any_depth(merged, wanted):
    adapter = fit(merged, wanted, steps=0)
    all_samples = torch.arange(40)
    means, features = merged(all_samples, adapter.blocks)

    before, last = merged(all_samples)
    assert all(torch.equal(one, other) for one, other in zip(means, before, strict=True))
    assert torch.equal(adapter(features), last)


def test_steps_are_those_of_the_published_loss_with_autograd_in_float64(merged, wanted):
    draw = generator(3)
    downs = [new_down(RANK, each, draw).double().requires_grad_(True) for each in wanted]
    ups = [torch.zeros_like(down.mT).requires_grad_(True) for down in downs]
    optimizer = torch.optim.Adam([*downs, *ups], lr=RATE)
    for indices in islice(in_rounds(40, BATCH, draw), 20):
        x, loss = merged.x[indices].double(), 0.0
        for depth, weight in enumerate(merged.weights):
            x = torch.tanh(x @ weight.double())
            x = x - torch.relu(x @ downs[depth].mT) @ ups[depth].mT
            loss = loss + (x.mean(dim=1) - wanted[depth][indices]).abs().mean()
        z = x[:, 0] - torch.relu(x[:, 0] @ downs[-1].mT) @ ups[-1].mT
        loss = loss + (z - wanted[-1][indices]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = fit(merged, wanted, steps=20, seed=3)

    for one, down, up in zip((*found.blocks, found), downs, ups, strict=True):
        np.testing.assert_allclose(one.down, down.detach(), atol=1e-4)
        np.testing.assert_allclose(one.up, up.detach(), atol=1e-4)


def test_features_behind_every_block_come_nearer(merged, wanted):
    adapter, all_samples = fit(merged, wanted, steps=150), torch.arange(40)

    def distances(adapters, last):
        means, features = merged(all_samples, adapters)
        found = [*means, last(features)]
        return [float((z - w).abs().mean()) for z, w in zip(found, wanted, strict=True)]

    before, after = distances((), lambda z: z), distances(adapter.blocks, adapter)
    assert all(one < other for one, other in zip(after, before, strict=True))


def test_two_r_d_parameters_are_added_behind_every_block_and_the_encoder(merged, wanted):
    assert fit(merged, wanted, steps=0).parameters == 2 * RANK * (5 + 6 + 6)


def test_an_adapter_is_the_same_from_its_parts_and_none_without_one_of_them(merged, wanted):
    adapter = fit(merged, wanted, steps=1)
    again = adapter_of(adapter.parts)

    assert again is not None
    assert list(again.parts) == list(adapter.parts)
    assert all(torch.equal(again.parts[name], value) for name, value in adapter.parts.items())
    for missing in adapter.parts:
        assert adapter_of({k: v for k, v in adapter.parts.items() if k != missing}) is None
    assert adapter_of({**adapter.parts, "down-1": torch.ones(3, 3)}) is None
