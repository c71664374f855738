"""Training is plain, and repeats to the bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from momacli.demonstration.training import Schedule, train
from momacli.progress import Progress


class Classifier(nn.Module):
    """Takes and returns what a `transformers` classifier does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 2)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(pixel_values.flatten(1)))


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    labels = torch.arange(40) % 2
    noise = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return noise + labels.reshape(-1, 1, 1, 1), labels


def trained(samples: tuple[Tensor, Tensor], *, seed: int = 0, steps: int = 60) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    train(model, *samples, Schedule(steps=steps, batch_size=16, rate=0.05), seed=seed)
    return model


def test_training_learns_what_separates_the_classes(samples):
    model = trained(samples)

    with torch.no_grad():
        predicted = model(samples[0]).logits.argmax(dim=-1)
    assert (predicted == samples[1]).float().mean() > 0.95
    assert not model.training


def test_the_same_seed_ends_with_the_same_bits(samples):
    torch.testing.assert_close(
        trained(samples).state_dict(), trained(samples).state_dict(), rtol=0, atol=0
    )


def test_another_seed_is_another_order_of_samples(samples):
    one, other = trained(samples, seed=0), trained(samples, seed=1)

    assert not torch.equal(one.layer.weight, other.layer.weight)


def test_every_step_is_reported_with_its_loss(samples):
    events: list[Progress] = []

    schedule = Schedule(steps=3, batch_size=16, rate=0.01)
    train(Classifier(), *samples, schedule, seed=0, stage="reading", listener=events.append)

    assert [(event.stage, event.done, event.total) for event in events] == [
        ("reading", 1, 3),
        ("reading", 2, 3),
        ("reading", 3, 3),
    ]
    assert all(event.values["loss"] > 0 for event in events)


def test_a_batch_may_be_larger_than_the_data(samples):
    values, labels = samples

    train(Classifier(), values[:5], labels[:5], Schedule(2, 16, 0.01), seed=0)


def test_the_rate_rises_shortly_and_falls_to_zero():
    schedule = Schedule(steps=100, batch_size=1, rate=1.0)

    factors = [schedule.factor(step) for step in range(101)]

    assert factors[0] == pytest.approx(0.1)
    assert factors.index(max(factors)) == 9
    assert factors[100] == pytest.approx(0.0)


def test_the_number_of_threads_is_left_as_it_was(samples):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        trained(samples, steps=1)

        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
