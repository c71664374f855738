"""Plain supervised training of a classifier on images that are all in memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from momacli.data.order import in_rounds
from momacli.models.device import one_thread
from momacli.progress import Listener, Progress, ignore

_WEIGHT_DECAY = 0.01
_WARMUP = 0.1  # share of the steps


@dataclass(frozen=True)
class Schedule:
    """AdamW with a short linear warm-up to `rate`, and a cosine down to zero."""

    steps: int
    batch_size: int
    rate: float

    def factor(self, step: int) -> float:
        """Share of `rate` at a step, counted from 0."""
        cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
        return min(1.0, (step + 1) / (_WARMUP * self.steps)) * cosine


def train(
    model: nn.Module,
    pixel_values: Tensor,  # [N, 3, H, W]
    labels: Tensor,  # [N]
    schedule: Schedule,
    *,
    seed: int,
    stage: str = "training",
    listener: Listener = ignore,
) -> None:
    """Train all parameters in place, and leave the model in evaluation mode.

    model: a `transformers` classifier, or anything that takes pixel_values and returns logits
        in the same way.
    seed: of the order of the samples. A model that starts with the same weights ends with the
        same bits on one machine, however many cores it may use.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=_WEIGHT_DECAY)
    batches = in_rounds(len(labels), schedule.batch_size, torch.Generator().manual_seed(seed))
    model.train()
    with one_thread():
        for step in range(schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * schedule.factor(step)
            picked = next(batches)
            logits = model(pixel_values=pixel_values[picked]).logits
            loss = nn.functional.cross_entropy(logits, labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            listener(Progress(stage, step + 1, schedule.steps, "steps", {"loss": loss.item()}))
    model.eval()
