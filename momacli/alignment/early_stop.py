"""Samples held back from the steps, which tell when further steps no longer help.

A tenth of each task's samples, with all views of an image or none; every 25 steps the objective
is measured on them, and when it has not fallen for 100 steps the mask and transforms of its
lowest value are taken up again.
Measured on the five tasks of `moma demo`, with masks that begin at the merged model, the value on
samples held back and the accuracy on others, by steps:

    samples a task     25            50            100           200           300
    450                3.88  92.1    3.33  93.6    2.93  94.6    2.59  95.2    2.45  95.4
    45                 4.11  87.2    3.64  88.8    3.35  89.5    3.20  90.4    3.17  90.6

So further steps cost time, but no accuracy, even with few samples; and 300, the default, end
where the value is nearly flat (2.40 and 95.4 at 400, 3.15 and 90.6 with 45 samples). There is
nothing to win by default, so the rule is off; it is for runs of many steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from momacli.alignment.encoding import TaskData, encode_all
from momacli.alignment.mask import MaskedEncoder
from momacli.alignment.objectives import Objective
from momacli.alignment.transforms import Transforms
from momacli.data.order import generator_of
from momacli.errors import DataError
from momacli.merging.ranks import Ranks
from momacli.models.interface import Encoder
from momacli.progress import Listener, Notice
from momacli.shapes import Float

EVERY, PATIENCE = 25, 4
"""Steps between two looks, and looks without a lower value until it is enough."""

_SHARE = 10  # one sample in so many is held back


def hold_back(
    tasks: Sequence[TaskData], seed: int
) -> tuple[list[TaskData], list[TaskData], list[Tensor]]:
    """Return the tasks to learn from, those to look at, and the former's sample numbers.

    Raises DataError for a task with a single sample.
    """
    learned, held, numbers = [], [], []
    for task in tasks:
        count = task.count // task.views
        if count < 2:
            raise DataError(
                f"task {task.task} has one sample, of which none can be held back",
                hint="leave out --early-stop, or give more samples",
            )
        order = torch.randperm(count, generator=generator_of(seed, f"{task.task}/held back"))
        first = max(1, count // _SHARE)
        held.append(replace(_with(task, order[:first].sort().values), views=1))
        rest = order[first:].sort().values
        numbers.append(torch.cat([rest + view * count for view in range(task.views)]))
        learned.append(_with(task, numbers[-1]))
    return learned, held, numbers


def _with(task: TaskData, numbers: Tensor) -> TaskData:
    """The task with these of its samples."""
    return replace(
        task,
        count=len(numbers),
        batch=lambda indices: task.batch(numbers[indices]),
        finetuned=task.finetuned[numbers],
        kept=None,
    )


@dataclass
class EarlyStop:
    """What has been best so far on the samples held back."""

    held: Sequence[TaskData]
    encoder: Encoder
    masked: MaskedEncoder
    transforms: Transforms
    objective: Objective
    ranks: Ranks
    best: dict[str, Tensor] = field(default_factory=dict)  # S, matrices, value and step

    def is_enough(self, step: int) -> bool:
        """Whether the last looks, until this step, found nothing better."""
        return bool(self.best) and step - int(self.best["step"]) >= PATIENCE * EVERY

    def look(self, step: int) -> None:
        """Measure the objective after a step."""
        value = self._measured()
        if not self.best or value < self.best["value"]:
            self.best = {
                "S": self.masked.state()["S"].clone(),
                "matrices": self.transforms.matrices.detach().clone(),
                "value": value,
                "step": torch.tensor([step]),
            }

    @torch.no_grad()
    def _measured(self) -> Float[Tensor, "1"]:
        """The sum over tasks of the objective on the samples held back."""
        found = encode_all(self.encoder, self.held, "samples held back", ranks=self.ranks)
        values = [
            self.objective(z_m @ A.mT, task.finetuned, task.head)
            for z_m, A, task in zip(found, self.transforms.matrices, self.held, strict=True)
        ]
        return torch.stack(values).sum()[None]

    def go_back(self, listener: Listener) -> int:
        """Take up mask and transforms of the lowest value; returns after how many steps it was."""
        if not self.best:
            return self.masked.steps
        done, step = self.masked.steps, int(self.best["step"])
        self.masked.restore(step, self.masked.state() | {"S": self.best["S"]})
        with torch.no_grad():
            self.transforms.matrices.copy_(self.best["matrices"])
        count = sum(task.count for task in self.held)
        text = f"of {done} steps, those after {step} did not lower the objective on the {count}"
        listener(Notice(f"{text} samples held back ({float(self.best['value']):.4g})"))
        return step

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what was best when a state was kept."""
        self.best = {name: value.to(self.held[0].device) for name, value in state.items()}
