"""What encoders make of each task's samples, all of them in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from momacli.alignment.sharing import ALONE, fitting_all, rows_of_all
from momacli.data.features import Entry
from momacli.errors import DivergenceError, OutOfMemoryError
from momacli.merging.ranks import Ranks
from momacli.models.device import release_memory
from momacli.models.interface import Batch, Encoder, Head, Padding
from momacli.progress import Listener, Notice, Progress, ignore
from momacli.shapes import Float, Int

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
    views: int = 1  # of each image; all first ones come first

    @property
    def device(self) -> torch.device:
        """Where its encoder and head are."""
        return self.head.weight.device


def encode_all(
    encoder: Encoder,
    tasks: Sequence[TaskData],
    stage: str,
    listener: Listener = ignore,
    ranks: Ranks = ALONE,
) -> list[Float[Tensor, "_ d"]]:
    """Return the encoder's features of all samples of each task.

    Where memory is short, fewer samples pass at a time, which is said.
    Raises OutOfMemoryError if it is too short for one.
    """
    size = _EVALUATION_BATCH
    while True:
        try:
            with fitting_all(
                ranks,
                f"{stage}: not enough memory for a single sample",
                hint="take a device with more memory, or --device cpu",
            ):
                parts = _encoded(encoder, tasks, size, stage, listener, ranks)
            return [_put_together(own, task, ranks) for own, task in zip(parts, tasks, strict=True)]
        except OutOfMemoryError:
            if size == 1:
                raise
        release_memory()
        size //= 2
        listener(Notice(f"{stage}: memory is short; {size} samples at a time"))


def merged_features(
    encoder: Encoder,
    tasks: Sequence[TaskData],
    listener: Listener = ignore,
    ranks: Ranks = ALONE,
) -> list[Float[Tensor, "_ d"]]:
    """Return what the merged encoder, which this one holds, makes of each task's samples.

    They are the same for every alignment of a model, and kept for the next.
    """
    found = [None if task.kept is None else task.kept.get(task.count) for task in tasks]
    everywhere = zip(*ranks.all_of([features is not None for features in found]), strict=True)
    found = [z_m if all(have) else None for z_m, have in zip(found, everywhere, strict=True)]
    missing = [task for task, features in zip(tasks, found, strict=True) if features is None]
    computed = iter(encode_all(encoder, missing, "merged features", listener, ranks))
    result = []
    for task, features in zip(tasks, found, strict=True):
        if features is None:
            features = next(computed)
            if task.kept is not None:
                task.kept.put(features)
        result.append(features.to(task.finetuned.device))
    return result


_Rows = tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]


@torch.no_grad()
def _encoded(
    encoder: Encoder,
    tasks: Sequence[TaskData],
    size: int,
    stage: str,
    listener: Listener,
    ranks: Ranks,
) -> list[_Rows | None]:
    """Of each task, the samples that are this process's to encode, and their features."""
    total, done = sum(task.count for task in tasks), 0
    result: list[_Rows | None] = []
    for task in tasks:
        own, parts = [], []
        for number, indices in enumerate(torch.arange(task.count).split(size)):
            done += len(indices)
            if number % ranks.count == ranks.number:
                own.append(indices)
                parts.append(encoder.features(task.batch(indices)).float())
                listener(Progress(stage, done, total, "samples"))
        result.append((torch.cat(own), torch.cat(parts)) if own else None)
    return result


def _put_together(own: _Rows | None, task: TaskData, ranks: Ranks) -> Float[Tensor, "N d"]:
    """The features of all samples of a task, of which every process has some."""
    width = ranks.from_first(None if own is None else own[1].shape[1])  # which always has some
    indices, features = own or (torch.arange(0), torch.empty(0, width, device=task.device))
    return rows_of_all(features, indices, task.count, ranks)


def check_finite(merged: Sequence[Float[Tensor, "_ d"]], tasks: Sequence[TaskData]) -> None:
    """Raise DivergenceError naming whose features of which task are not finite."""
    for z_m, task in zip(merged, tasks, strict=True):
        for whose, features in (("merged", z_m), ("fine-tuned", task.finetuned)):
            if not bool(torch.isfinite(features).all()):
                raise DivergenceError(
                    f"the {whose} model's features of task {task.task} are not finite",
                    hint="look for broken samples in its folder, or NaN in the checkpoints",
                )
