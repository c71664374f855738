"""A few experts of one small network, with heads and samples, for methods that see samples."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from momacli.adaptation.ensemble import Ensemble, Task
from momacli.models.interface import Head


class TinyNetwork:
    """A small encoder in the form that methods ask for."""

    def __init__(self, module: nn.Module):
        self.module = module.requires_grad_(False).eval()
        self.parameters = dict(module.named_parameters())
        self.buffers = dict(module.named_buffers())

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.module(batch["x"])


def perceptron() -> nn.Module:
    """Two linear layers, which go by 0 and 2."""
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def weights_of(module: nn.Module, seed: int, size: float = 0.4) -> dict[str, Tensor]:
    """The tensors of a module a random step away."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: value + size * torch.randn(value.shape, generator=draw)
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }


def tiny_ensemble(
    make: Callable[[], nn.Module] = perceptron,
    experts: Sequence[Mapping[str, Tensor]] | None = None,
    *,
    inputs: Sequence[Tensor] | None = None,
    tasks: int = 3,
    samples: int = 24,
    **given: object,
) -> Ensemble:
    """T experts of one network, each with random samples and a head of its own."""
    torch.manual_seed(0)
    module = make()
    base = {name: value.clone() for name, value in module.state_dict().items()}
    experts = experts or [weights_of(module, 1 + t) for t in range(tasks)]
    draw = torch.Generator().manual_seed(100)
    inputs = inputs or [torch.randn(samples + t, 6, generator=draw) for t in range(len(experts))]
    found = []
    for t, x in enumerate(inputs):
        head = Head(torch.randn(3 + t, 4, generator=draw), torch.randn(3 + t, generator=draw))
        found.append(Task(f"task{t}", len(x), lambda indices, x=x: {"x": x[indices]}, head))
    return Ensemble(
        network=TinyNetwork(module),
        tensors=list(experts[0]),
        tasks=found,
        base=lambda name: base[name].clone(),
        expert=lambda t, name: experts[t][name].clone(),
        **given,
    )


def logits_of(ensemble: Ensemble, weights: Mapping[str, Tensor], t: int) -> Tensor:
    """What a task's head says of all its samples with these weights; differentiable in them."""
    task = ensemble.tasks[t]
    batch = task.batch(torch.arange(task.count))
    features = torch.func.functional_call(ensemble.network.module, dict(weights), (batch["x"],))
    return task.head(features)


def entropy(logits: Tensor) -> Tensor:
    """Written another way than the objective is."""
    return torch.distributions.Categorical(logits=logits).entropy().mean()
