"""What methods cost that see cached features alone: of ViT-B/32's width, by default eight tasks.

Merged features are fine-tuned ones turned and shrunk, as merges leave them, with noise; heads have
the classes of the eight data sets of the literature. One thread. Encoding samples comes first and
is not measured here: it is one pass of each encoder whatever the method.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from momacli.alignment.catalog import ADDING, DEEP, FILES, feature_method
from momacli.features.families import moments, orthogonal
from momacli.models.interface import Head
from momacli.models.separate_head import unit_norm

CLASSES = (397, 196, 45, 10, 10, 43, 10, 47)


def task(number: int, samples: int, width: int) -> tuple[Tensor, Tensor, Head]:
    """Merged and fine-tuned features of one task, and its head."""
    draw = torch.Generator().manual_seed(number)
    finetuned = 10 * unit_norm(torch.randn(samples, width, generator=draw))
    near = torch.eye(width) + 0.02 * torch.randn(width, width, generator=draw)
    turn, _ = torch.linalg.qr(near)
    noise = 0.1 * torch.randn(samples, width, generator=draw)
    rows = unit_norm(torch.randn(CLASSES[number % len(CLASSES)], width, generator=draw))
    return 0.7 * finetuned @ turn + noise, finetuned, Head(100 * rows, None, before=unit_norm)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    started, clock = time.process_time(), time.monotonic()
    work()
    return time.process_time() - started, time.monotonic() - clock


def run(arguments: argparse.Namespace) -> None:
    """Print the seconds of all tasks together, method by method."""
    torch.set_num_threads(1)
    given = [task(n, arguments.samples, arguments.width) for n in range(arguments.tasks)]
    _warm(given[0])
    what = f"{arguments.tasks} tasks, {arguments.samples} samples, {arguments.width} wide"
    print(f"{what:44} {'CPU s':>8} {'wall s':>8} {'steps':>8}")

    def closed() -> None:
        for merged, finetuned, _ in given:
            orthogonal(moments(merged, finetuned))

    _show("orthogonal alone, in closed form", measured(closed), 0)
    for name in FILES:
        if name in DEEP:
            continue
        method = feature_method(name, {})
        _show(name, measured(lambda name=name: _fit(name, given)), method.steps)


def _fit(name: str, given: Sequence[tuple[Tensor, Tensor, Head]]) -> None:
    method = feature_method(name, {})
    for number, (merged, finetuned, head) in enumerate(given):
        inputs = (merged, finetuned) if name in ADDING else (merged, finetuned, head)
        generator = torch.Generator().manual_seed(number)
        method.function(*inputs, **method.own_options, generator=generator)


def _warm(first: tuple[Tensor, Tensor, Head]) -> None:
    """The first step of a process loads, or even compiles, what the others need not."""
    function = feature_method("surgery", {}).function
    function(first[0], first[1], steps=2, generator=torch.Generator())


def _show(name: str, seconds: tuple[float, float], steps: int) -> None:
    print(f"{name:44} {seconds[0]:8.2f} {seconds[1]:8.2f} {steps or '':>8}", flush=True)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The sizes, by default those of the paper's vision tasks."""
    command.add_argument("--tasks", type=int, default=8)
    command.add_argument("--samples", type=int, default=1000, help="of each task")
    command.add_argument("--width", type=int, default=512, help="of ViT-B/32: 512, or 768 as ViT")
