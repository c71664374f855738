"""What encoders make of each task's samples, all of them in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.data.features import Entry
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
    kept: Entry | None = None  # what the merged encoder makes of the samples


def encode_all(
    encoder: Encoder, tasks: Sequence[TaskData], stage: str, listener: Listener = ignore
) -> list[Float[Tensor, "_ d"]]:
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


def merged_features(
    encoder: Encoder, tasks: Sequence[TaskData], listener: Listener = ignore
) -> list[Float[Tensor, "_ d"]]:
    """Return what the merged encoder, which this one holds, makes of each task's samples.

    They are the same for every alignment of a model, and kept for the next.
    """
    found = [None if task.kept is None else task.kept.get(task.count) for task in tasks]
    missing = [task for task, features in zip(tasks, found, strict=True) if features is None]
    computed = iter(encode_all(encoder, missing, "merged features", listener))
    result = []
    for task, features in zip(tasks, found, strict=True):
        if features is None:
            features = next(computed)
            if task.kept is not None:
                task.kept.put(features)
        result.append(features.to(task.finetuned.device))
    return result


@torch.no_grad()
def _encoded(
    encoder: Encoder, tasks: Sequence[TaskData], size: int, stage: str, listener: Listener
) -> list[Float[Tensor, "_ d"]]:
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


def check_finite(merged: Sequence[Float[Tensor, "_ d"]], tasks: Sequence[TaskData]) -> None:
    """Raise DivergenceError naming whose features of which task are not finite."""
    for z_m, task in zip(merged, tasks, strict=True):
        for whose, features in (("merged", z_m), ("fine-tuned", task.finetuned)):
            if not bool(torch.isfinite(features).all()):
                raise DivergenceError(
                    f"the {whose} model's features of task {task.task} are not finite",
                    hint="look for broken samples in its folder, or NaN in the checkpoints",
                )
