"""What encoders make of each task's samples, all of them in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.errors import DivergenceError, OutOfMemoryError
from momacli.models.device import needing_memory, release_memory
from momacli.models.interface import Batch, Encoder, Head, Padding
from momacli.progress import Listener, Notice, Progress, ignore

_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TaskData:
    """What one task brings: its samples, what its fine-tuned encoder made of them, its head."""

    task: str
    count: int
    batch: Callable[[Tensor], Batch]  # indices [n] -> inputs on the encoder's device
    finetuned: Float[Tensor, "N d"]
    head: Head
    padding: Padding = field(default_factory=Padding)  # the same for all tasks


def encode_all(
    encoder: Encoder, tasks: Sequence[TaskData], stage: str, listener: Listener = ignore
) -> list[Float[Tensor, "N d"]]:
    """Return the encoder's features of all samples of each task.

    Where memory is short, fewer samples pass at a time, which is said.
    Raises OutOfMemoryError if it is too short for one.
    """
    size = _EVALUATION_BATCH
    while True:
        try:
            with needing_memory(
                f"{stage}: not enough memory for a single sample",
                hint="take a device with more memory, or --device cpu",
            ):
                return _encoded(encoder, tasks, size, stage, listener)
        except OutOfMemoryError:
            if size == 1:
                raise
        release_memory()
        size //= 2
        listener(Notice(f"{stage}: memory is short; {size} samples at a time"))


@torch.no_grad()
def _encoded(
    encoder: Encoder, tasks: Sequence[TaskData], size: int, stage: str, listener: Listener
) -> list[Float[Tensor, "N d"]]:
    total, done = sum(task.count for task in tasks), 0
    result = []
    for task in tasks:
        parts = []
        for indices in torch.arange(task.count).split(size):
            parts.append(encoder.features(task.batch(indices)).float())
            done += len(indices)
            listener(Progress(stage, done, total, "samples"))
        result.append(torch.cat(parts))
    return result


def check_finite(merged: Sequence[Float[Tensor, "N d"]], tasks: Sequence[TaskData]) -> None:
    """Raise DivergenceError naming whose features of which task are not finite."""
    for z_m, task in zip(merged, tasks, strict=True):
        for whose, features in (("merged", z_m), ("fine-tuned", task.finetuned)):
            if not bool(torch.isfinite(features).all()):
                raise DivergenceError(
                    f"the {whose} model's features of task {task.task} are not finite",
                    hint="look for broken samples in its folder, or NaN in the checkpoints",
                )
