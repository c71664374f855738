"""The steps of an alignment; the only loop, whatever is learned.

Each step is one forward and backward pass of the merged encoder over the samples of all
tasks together, and a few element-wise passes over its parameters. Fine-tuned encoders are not
needed here: their features come in ready made.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from momacli.alignment.early_stop import EVERY, EarlyStop
from momacli.alignment.encoding import TaskData
from momacli.alignment.mask import MaskedEncoder
from momacli.alignment.objectives import Objective
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import Settings
from momacli.alignment.sharing import ALONE, fitting_all, part_of, rows_of_all
from momacli.alignment.transforms import Transforms
from momacli.data.ahead import ahead
from momacli.data.order import shuffled
from momacli.errors import DivergenceError
from momacli.merging.ranks import Ranks
from momacli.models.interface import Batch, Encoder
from momacli.models.precision import choose_precision, computing_in
from momacli.progress import Listener, Notice, Progress
from momacli.shapes import Float
from momacli.signals import uninterrupted

State = tuple[int, Mapping[str, Tensor]]
"""Steps done, and the tensors to go on from."""

_Inputs = tuple[list[Tensor], Batch | None]

_SIZE = "batch_size"

MASKED = "masked share"
"""Among the values of progress, beside the tasks' losses."""

_COUNTED = 10  # steps after which the masked share is counted anew: a pass over S


@dataclass(frozen=True)
class Descent:
    """What is learned, on which samples, by which measure."""

    encoder: Encoder
    masked: MaskedEncoder
    transforms: Transforms
    tasks: Sequence[TaskData]
    settings: Settings
    objective: Objective
    batch_size: int  # samples of each task a step
    ranks: Ranks = ALONE  # each takes a part of every step's samples
    watch: EarlyStop | None = None  # says when it is enough

    def run(self, kept: State | None, keeper: Keeper | None, listener: Listener) -> int:
        """Do all steps that a kept state does not have behind it; returns the samples they took.

        Raises DivergenceError, naming step and task, if a loss is not finite, and
        OutOfMemoryError, naming the batch size, if a step does not fit.
        """
        done = first = 0 if kept is None else self._take_up(kept, listener)
        inputs = self._inputs(done)
        if self._device.type == "cuda":
            inputs = ahead(inputs)
        share = self.masked.masked_share()
        try:
            with self._stopping_together() as is_asked_to_end:
                while not self._is_enough(done):
                    values = self._step(inputs, done + 1)
                    done += 1
                    if done % _COUNTED == 0:
                        share = self.masked.masked_share()
                    values |= {MASKED: share}
                    seen = (done - first) * self.samples
                    listener(Progress("aligning", done, self.settings.steps, "steps", values, seen))
                    if self.watch and done % EVERY == 0:
                        self.watch.look(done)
                    if keeper and keeper.every and done % keeper.every == 0:
                        keeper.save(done, self._state())
                    if any(self.ranks.all_of(is_asked_to_end())):
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if keeper:
                with uninterrupted():
                    keeper.save(self.masked.steps, self._state())
                text = f"stopped after step {self.masked.steps}"
                listener(Notice(f"{text}; the same command goes on from there"))
            raise
        finally:
            inputs.close()
        return (done - first) * self.samples

    def _is_enough(self, done: int) -> bool:
        """Whether no step is left to do, or none that would help."""
        return done >= self.settings.steps or bool(self.watch and self.watch.is_enough(done))

    def _stopping_together(self) -> AbstractContextManager[Callable[[], bool]]:
        """Several processes stop after the same step, where their state is one; one at once."""
        return uninterrupted() if self.ranks.count > 1 else nullcontext(lambda: False)

    def _picks(self, done: int) -> Iterator[list[Tensor]]:
        """Each step's samples of each task, without those of the steps done."""
        orders = [
            islice(
                shuffled(one.count, self.batch_size, seed=self.settings.seed, task=one.task),
                done,
                None,
            )
            for one in self.tasks
        ]
        while True:
            yield [next(order) for order in orders]

    def _inputs(self, done: int) -> Generator[_Inputs, None, None]:
        """Each step's samples, and this process's part of them as one batch, if it has any."""
        for picked in self._picks(done):
            own = part_of(sum(map(len, picked)), self.ranks)
            batches, start = [], 0
            for task, indices in zip(self.tasks, picked, strict=True):
                mine = indices[max(0, own.start - start) : max(0, own.stop - start)]
                start += len(indices)
                if len(mine):
                    batches.append(task.batch(mine))
            yield picked, self.tasks[0].padding.together(batches) if batches else None

    def _step(self, inputs: Iterator[_Inputs], number: int) -> dict[str, float]:
        """Move mask and transforms by one step; returns each task's loss."""
        with self._fitting():
            picked, batch = next(inputs)
            features = self._features(batch)
        sizes = [len(indices) for indices in picked]
        own = part_of(sum(sizes), self.ranks)
        rows = rows_of_all(features.detach(), own, sum(sizes), self.ranks).requires_grad_()
        merged = rows.split(sizes)
        finetuned = [
            task.finetuned[indices] for task, indices in zip(self.tasks, picked, strict=True)
        ]
        losses = [
            self.objective(z_m @ A.mT, z_t, task.head)
            for z_m, A, z_t, task in zip(
                merged, self.transforms.matrices, finetuned, self.tasks, strict=True
            )
        ]
        (torch.stack(losses).sum() + self.transforms.penalty()).backward()
        values = self._finite(losses, number)
        with self._fitting():
            if features.requires_grad:
                assert rows.grad is not None
                features.backward(rows.grad[own] if self.ranks.count > 1 else rows.grad)
        with uninterrupted():  # half an update would be no state to go on from
            self.masked.step(rate=self.settings.mask_rate, sparsity=self.settings.sparsity)
            self.transforms.observe([z_m.detach() for z_m in merged], finetuned)
        return values

    def _features(self, batch: Batch | None) -> Float[Tensor, "n d"]:
        """What the merged encoder makes of samples, in float32 whatever it computes in."""
        if batch is None:
            return torch.zeros_like(self.tasks[0].finetuned[:0])
        with computing_in(self._precision, self._device):
            features = self.encoder.features(batch)
        return features.float()

    @cached_property
    def _precision(self) -> str:
        size = sum(parameter.numel() for parameter in self.encoder.parameters.values())
        return choose_precision(self.settings.precision, self._device, size)

    @property
    def _device(self) -> torch.device:
        return self.tasks[0].device

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Let no process go on alone where a step is too large for another's memory."""
        with fitting_all(self.ranks, self._too_large(), hint=self._smaller()):
            yield

    @property
    def samples(self) -> int:
        """How many a step takes, of all tasks together."""
        return sum(min(self.batch_size, task.count) for task in self.tasks)

    def _too_large(self) -> str:
        return (
            f"not enough memory for a step with --batch-size {self.batch_size}: "
            f"{self.samples} samples of {len(self.tasks)} tasks at a time"
        )

    def _smaller(self) -> str:
        if self.batch_size == 1:
            return "take a device with more memory, or --mask none, which needs no steps"
        half = self.batch_size // 2
        return f"lower it, to --batch-size {half} or so; --batch-size auto finds one that fits"

    def _finite(self, losses: Sequence[Tensor], step: int) -> dict[str, float]:
        values = torch.stack([loss.detach() for loss in losses]).tolist()
        named = {task.task: value for task, value in zip(self.tasks, values, strict=True)}
        broken = [task for task, value in named.items() if not math.isfinite(value)]
        if broken:
            raise DivergenceError(
                f"step {step}: the loss of {', '.join(broken)} is not finite",
                hint="lower --mask-rate, or look for broken samples in that task's folder",
            )
        return named

    def _state(self) -> dict[str, Tensor]:
        parts = {"mask": self.masked.state(), "transforms": self.transforms.state()}
        parts |= {"best": self.watch.best} if self.watch else {}
        tensors = {
            f"{part}.{name}": value
            for part, state in parts.items()
            for name, value in state.items()
        }
        return {_SIZE: torch.tensor([self.batch_size])} | tensors

    def _take_up(self, kept: State, listener: Listener) -> int:
        """Restore a kept state; returns how many steps it has behind it."""
        step, tensors = kept
        parts: dict[str, dict[str, Tensor]] = {"mask": {}, "transforms": {}, "best": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        self.masked.restore(step, parts["mask"])
        self.transforms.restore(step, parts["transforms"])
        if self.watch:
            self.watch.restore(parts["best"])
        listener(Notice(f"going on after step {step}"))
        return step


def batch_size_of(kept: State) -> int:
    """The batch size that a kept state was reached with."""
    return int(kept[1][_SIZE])
