"""The loop that fits a few parameters to cached features: Adam on shuffled batches."""

import math
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from momacli.data.order import in_rounds
from momacli.errors import DivergenceError

_REPORT_EVERY = 50  # steps; a loss is looked at no more often, which would cost as much as a step


def descend(
    parameters: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    count: int,
    steps: int,
    batch_size: int,
    rate: float,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Move the parameters, leaves that require gradients, in place.

    loss: indices [n] of samples -> a scalar.
    count: how many samples there are.
    on_step: is told now and then how many steps are done, and the loss of the last.

    Raises DivergenceError if a loss is not finite.
    """
    adam = torch.optim.Adam(list(parameters), lr=rate, fused=True)
    for done, indices in enumerate(islice(in_rounds(count, batch_size, generator), steps), start=1):
        value = loss(indices)
        adam.zero_grad()
        value.backward()
        adam.step()
        if done % _REPORT_EVERY and done < steps:
            continue
        number = float(value.detach())
        if not math.isfinite(number):
            raise DivergenceError(
                f"step {done}: the loss is not finite", hint="lower the rate with --set rate=…"
            )
        if on_step is not None:
            on_step(done, number)
