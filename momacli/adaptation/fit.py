"""The loop of methods that learn a merge from unlabeled samples, whatever is learned.

Each step takes the gradient of the sum of all T tasks' losses. The samples of as many tasks go
through the merged encoder together as fill the device: more would only take more memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from momacli.adaptation.ensemble import Ensemble, Task
from momacli.adaptation.entropy import mean_entropy
from momacli.adaptation.leaves import LOSS_SCALE, Leaves
from momacli.data.order import shuffled
from momacli.errors import DivergenceError
from momacli.progress import Notice, Progress
from momacli.shapes import Float
from momacli.signals import uninterrupted

_TOGETHER = {"cpu": 16}
_TOGETHER_ELSEWHERE = 128
"""Samples of a forward and backward pass, unless a task alone has more.

Activations of ViT-B/32 take 35 MB a sample. On a core 16 at once take as long each as 32 do; a GPU
has more to fill.
"""


@runtime_checkable
class Learned(Protocol):
    """Parameters of a merge: they give the encoder its weights, and take its gradients."""

    def place(self) -> None:
        """Give the encoder the merged weights for a step."""
        ...

    @property
    def leaves(self) -> Leaves:
        """The encoder's parameters."""
        ...

    def take(self, layer: int, gradient: Tensor) -> bool:
        """Use LOSS_SCALE dL/dtheta_m of one tensor, [n], of the losses of some of the tasks.

        Returns whether it may be dropped; if not, those of the other tasks are added to it.
        """
        ...

    def step(self) -> None:
        """Move along the gradients of all tasks."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        ...


def descend(
    ensemble: Ensemble,
    learned: Learned,
    *,
    steps: int,
    batch_size: int,
    precision: str,
    rate_option: str = "rate",
    stage: str = "adapting",
) -> None:
    """Lower the sum of the tasks' mean entropies by `steps` steps.

    batch_size: samples of each task a step.
    precision: of the encoder's arithmetic, float32, bfloat16 or auto.
    rate_option: what a user may lower where it diverges.

    Raises DivergenceError, naming step and tasks, if a loss is not finite.
    """
    done = _resumed(ensemble, learned, stage)
    tasks, precision = ensemble.tasks, ensemble.precision(precision)
    orders = [
        islice(shuffled(task.count, batch_size, seed=ensemble.seed, task=task.name), done, None)
        for task in tasks
    ]
    keeper = ensemble.keeper
    try:
        while done < steps:
            learned.place()
            picked = [next(order) for order in orders]
            losses = _losses(ensemble, learned, picked, precision)
            values = _finite(losses, tasks, done + 1, rate_option)
            with uninterrupted():  # half an update would be no state to go on from
                learned.step()
                done += 1
            ensemble.listener(Progress(stage, done, steps, "steps", values))
            if keeper and keeper.every and done % keeper.every == 0:
                keeper.save(done, learned.state())
    except KeyboardInterrupt:
        if keeper:
            with uninterrupted():
                keeper.save(done, learned.state())
            text = f"stopped after step {done}; the same command goes on from there"
            ensemble.listener(Notice(text))
        raise


def _losses(
    ensemble: Ensemble, learned: Learned, picked: Sequence[Tensor], precision: str
) -> Float[Tensor, " T"]:
    """Back-propagate the sum of all tasks' losses; returns each."""
    limit = _TOGETHER.get(ensemble.device.type, _TOGETHER_ELSEWHERE)
    found = []
    for some in together([len(indices) for indices in picked], limit):
        tasks, counts = ensemble.tasks[some], [len(indices) for indices in picked[some]]
        batches = [task.batch(indices) for task, indices in zip(tasks, picked[some], strict=True)]
        features = ensemble.features(tasks[0].padding.together(batches), precision)
        parts = zip(tasks, features.split(counts), strict=True)
        losses = torch.stack([mean_entropy(task.head(part)) for task, part in parts])
        with learned.leaves.handing_over(learned.take):
            (LOSS_SCALE * losses.sum()).backward()
        found.append(losses.detach())
    return torch.cat(found)


def together(counts: Sequence[int], limit: int) -> Iterator[slice]:
    """Parts of a list of tasks, of `limit` samples at most if they are several."""
    start = 0
    for stop in range(1, len(counts) + 1):
        if stop == len(counts) or sum(counts[start : stop + 1]) > limit:
            yield slice(start, stop)
            start = stop


def _finite(
    losses: Tensor, tasks: Sequence[Task], number: int, rate_option: str
) -> dict[str, float]:
    named = {task.name: loss for task, loss in zip(tasks, losses.tolist(), strict=True)}
    broken = [task for task, loss in named.items() if not math.isfinite(loss)]
    if broken:
        raise DivergenceError(
            f"step {number}: the entropy of {', '.join(broken)} is not finite",
            hint=f"lower --set {rate_option}=…, or look for broken samples in that task's folder",
        )
    return named


def _resumed(ensemble: Ensemble, learned: Learned, stage: str) -> int:
    """Take up a kept state; returns how many steps it has behind it."""
    kept = ensemble.keeper.load() if ensemble.keeper else None
    if kept is None:
        return 0
    done, tensors = kept
    learned.restore(tensors)
    ensemble.listener(Notice(f"{stage}: going on after step {done}"))
    return done
