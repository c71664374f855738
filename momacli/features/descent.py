"""The loop that fits a few parameters to cached features: Adam on shuffled batches.

A batch of 16 features is so little that taking down a graph of it for autograd costs more than
its numbers: whoever calls says how the loss changes with each parameter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from momacli.compiled.training_loops import adam
from momacli.data.order import in_rounds
from momacli.errors import DivergenceError

_REPORT_EVERY = 50  # steps; on a GPU, looking at a loss waits for all that was asked of it

_EPSILON = 1e-8

Slopes = tuple[Callable[[], Tensor], Sequence[Tensor]]
"""A batch's loss, computed where it is asked for, and its gradient by each parameter."""

Move = Callable[[Sequence[Tensor]], None]
"""Takes the gradients of the parameters and moves these."""


@dataclass(frozen=True)
class Pace:
    """How many steps there are, how many samples each sees, and Adam's learning rate."""

    steps: int
    batch_size: int
    rate: float


def descend(
    parameters: Sequence[Tensor],
    differentiate: Callable[[Tensor], Slopes],
    count: int,
    pace: Pace,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Move the parameters, contiguous float tensors, in place.

    differentiate: takes indices [n] of samples.
    count: how many samples there are.
    on_step: is told now and then how many steps are done, and the loss of the last.

    Raises DivergenceError if a loss is not finite.
    """
    on_cpu = parameters[0].device.type == "cpu"
    move = compiled_adam(parameters, pace.rate) if on_cpu else torch_adam(parameters, pace.rate)
    batches = islice(in_rounds(count, pace.batch_size, generator), pace.steps)
    for done, indices in enumerate(batches, start=1):
        loss, gradients = differentiate(indices)
        move(gradients)
        if done % _REPORT_EVERY and done < pace.steps:
            continue
        number = float(loss())
        if not math.isfinite(number):
            raise DivergenceError(
                f"step {done}: the loss is not finite", hint="lower the rate with --set rate=…"
            )
        if on_step is not None:
            on_step(done, number)


def compiled_adam(parameters: Sequence[Tensor], rate: float) -> Move:
    """Adam in one pass over the entries: a third of the time that torch's takes; on the CPU."""
    flat = [value.view(-1).numpy() for value in parameters]
    moments = [(values * 0, values * 0) for values in flat]
    step = 0

    def move(gradients: Sequence[Tensor]) -> None:
        nonlocal step
        step += 1
        unbias = math.sqrt(1 - 0.999**step)
        for values, (mean, square), gradient in zip(flat, moments, gradients, strict=True):
            slope = gradient.contiguous().view(-1).numpy()
            adam(values, mean, square, slope, rate * unbias / (1 - 0.9**step), _EPSILON * unbias)

    return move


def torch_adam(parameters: Sequence[Tensor], rate: float) -> Move:
    """Adam on any device."""
    optimizer = torch.optim.Adam(list(parameters), lr=rate, eps=_EPSILON, fused=True)

    def move(gradients: Sequence[Tensor]) -> None:
        for value, gradient in zip(parameters, gradients, strict=True):
            value.grad = gradient
        optimizer.step()

    return move
