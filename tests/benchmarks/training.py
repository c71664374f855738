"""Plain fine-tuning, as all suites have it: an encoder, and heads that learn faster."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from momacli.demonstration.training import Schedule
from momacli.models.device import one_thread

HEAD_RATE = 10
"""A head's learning rate as a multiple of the encoder's: it starts at random."""

_WEIGHT_DECAY = 0.01


def fine_tune(
    encoder: nn.Module, heads: nn.Module, schedule: Schedule, loss: Callable[[], Tensor]
) -> None:
    """Train in place by AdamW; the same seeds give the same bits.

    loss: of the next batch.
    """
    groups = [
        {"params": encoder.parameters(), "scale": 1.0},
        {"params": heads.parameters(), "scale": float(HEAD_RATE)},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=_WEIGHT_DECAY)
    with one_thread():
        for step in range(schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * group["scale"] * schedule.factor(step)
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
