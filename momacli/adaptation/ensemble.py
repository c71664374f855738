"""What a merge that sees samples works with: a base, its experts, their heads and samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from momacli.alignment.resume import Keeper
from momacli.checkpoint.arrays import as_tensor
from momacli.data.order import seed_of
from momacli.methods._random_mask import Draws
from momacli.models.interface import Batch, Encoder, Head, Padding
from momacli.models.precision import choose_precision, computing_in
from momacli.progress import Listener, ignore
from momacli.shapes import Float


@runtime_checkable
class Network(Encoder, Protocol):
    """An encoder whose modules can be watched."""

    module: nn.Module


@dataclass(frozen=True)
class Task:
    """What one task brings: its samples, and the head of its expert."""

    name: str
    count: int
    batch: Callable[[Tensor], Batch]  # indices [n] -> inputs on the network's device
    head: Head
    padding: Padding = field(default_factory=Padding)  # the same for all tasks


@dataclass(frozen=True)
class Ensemble:
    """A base and T experts on one network, read a tensor at a time, in float32.

    Of the tensors to be merged those in `network.parameters` have gradients; the others are
    running statistics, or take no part in what the network computes.
    """

    network: Network
    tensors: Sequence[str]
    tasks: Sequence[Task]  # one an expert, in their order
    base: Callable[[str], Tensor]  # theta_0 of a tensor
    expert: Callable[[int, str], Tensor]  # theta_t of a tensor
    seed: int = 0
    keeper: Keeper | None = None  # of what is learned, so that a stopped run goes on
    listener: Listener = ignore

    @property
    def learnable(self) -> list[str]:
        """The tensors that the network differentiates in."""
        return [name for name in self.tensors if name in self.network.parameters]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(iter(self.network.parameters.values())).device

    def task_vectors(self, name: str) -> Float[Tensor, "T *shape"]:
        """tau_t = theta_t - theta_0 of one tensor, of all experts."""
        theta_0 = self.base(name)
        return torch.stack([self.expert(t, name) - theta_0 for t in range(len(self.tasks))])

    def task_arithmetic(self, name: str, lam: float) -> Tensor:
        """theta_0 + lam sum_t tau_t of one tensor."""
        return self.base(name) + lam * self.task_vectors(name).sum(dim=0)

    def mean(self, name: str) -> Tensor:
        """theta_0 + the mean of the task vectors: the average of the experts."""
        total = torch.zeros_like(theta_0 := self.base(name))
        for t in range(len(self.tasks)):
            total += self.expert(t, name) - theta_0
        return theta_0 + total / len(self.tasks)

    @torch.no_grad()
    def load(self, read: Callable[[str], Tensor], names: Sequence[str] | None = None) -> None:
        """Give the network other values of tensors, by default of all that are merged."""
        places: dict[str, Tensor] = {**self.network.parameters, **self.network.buffers}
        for name in self.tensors if names is None else names:
            if name in places:
                places[name].copy_(read(name))

    def load_expert(self, t: int, names: Sequence[str] | None = None) -> None:
        """Give the network the values of an expert."""
        self.load(lambda name: self.expert(t, name), names)

    def precision(self, asked: str) -> str:
        """What the network computes in; "auto" is what fits its device and size."""
        size = sum(parameter.numel() for parameter in self.network.parameters.values())
        return choose_precision(asked, self.device, size)

    def features(self, batch: Batch, precision: str) -> Float[Tensor, "n d"]:
        """What the network makes of a batch, in float32 whatever it computes in."""
        with computing_in(precision, self.device):
            features = self.network.features(batch)
        return features.float()

    def generator(self, what: str) -> torch.Generator:
        """Random numbers on the network's device, by the seed and what they are for."""
        return torch.Generator(self.device).manual_seed(seed_of(f"{self.seed}/{what}"))

    def uniform(self, what: str) -> Callable[[int], Float[Tensor, " n"]]:
        """As `generator`, numbers from 0 to 1, as many at a time as are asked for.

        On the processor they are compiled: torch's own would take ten times as long.
        """
        if self.device.type == "cpu":
            draws = Draws(f"{self.seed}/{what}")
            return lambda count: as_tensor(draws.uniform(count))
        generator = self.generator(what)
        return lambda count: torch.rand(count, generator=generator, device=self.device)

    def batches(self, task: Task, size: int) -> Iterator[Batch]:
        """All samples of a task, in their own order."""
        for indices in torch.arange(task.count).split(size):
            yield task.batch(indices)


Merged = Mapping[str, Tensor]
"""theta_m by tensor name, each in its own shape, in float32."""
