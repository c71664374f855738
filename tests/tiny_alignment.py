"""A tiny encoder and tasks with teachers that are noise, for what an alignment does to them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from momacli.alignment.encoding import TaskData
from momacli.models.interface import Head


class Network:
    """A small encoder in the form `fit_alignment` asks for."""

    def __init__(self, module: nn.Module):
        self.module = module.requires_grad_(False)
        self.parameters = dict(module.named_parameters())
        self.buffers = {}

    def features(self, batch):
        return self.module(batch["x"])


def noisy_problem(
    counts: Mapping[str, int], *, inner: int = 8
) -> tuple[Network, Callable[[str], Tensor], list[TaskData]]:
    """A merged encoder, what reads its base, and the tasks; the same bits every time.

    counts: samples of each task.
    inner: width of the layer between; the encoder has 10 inner + 5 parameters.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, inner), nn.Tanh(), nn.Linear(inner, 5))
    base = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    merged = {k: v + 0.3 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
    module.load_state_dict(merged)
    tasks = []
    for name, count in counts.items():
        x = torch.randn(count, 4, generator=generator)
        teacher = torch.randn(count, 5, generator=generator)
        head = Head(torch.randn(3, 5, generator=generator), None)
        tasks.append(TaskData(name, count, lambda i, x=x: {"x": x[i]}, teacher, head))
    return Network(module), base.__getitem__, tasks
