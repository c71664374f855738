"""RegMean++ (Nguyen et al. 2025, arXiv:2508.03121): RegMean along the merged model's own layers.

The same regression, layer after layer: the inputs X_t of an expert's layer are what the merged
layers before it make of the samples of task t, not what the expert's own do. What comes before
the first layer is averaged first.

A layer is a block of the network, such as a transformer's, with all its linear layers; a linear
layer outside of blocks is one by itself. Each pass over the samples ends with the layer it is
for. By default 256 samples of each task are seen; `--max-samples` says another number.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from momacli.adaptation.ensemble import Ensemble, Merged, Task
from momacli.models.interface import Batch
from momacli.progress import Progress
from momacli.statistics.grams import LinearInputs, RegressionSums, linear_layers, watching

SAMPLES = 256
"""Of each task, unless told otherwise."""

ENCODERS, ENCODERS_PER_EXPERT = 3, 0
"""What is held, in sizes of the merged tensors in float32, whatever the number of experts:
theta_m, the result, and the sums of one layer."""


def regmean_plus_plus(ensemble: Ensemble, *, alpha: float = 0.95, batch_size: int = 32) -> Merged:
    """Return the average of the experts, but for linear layers, which fit all experts' outputs.

    alpha: factor on the Gram matrices off their diagonals; 0.95 is FusionBench's for CLIP.
    batch_size: samples that are passed at once; it changes nothing but memory.
    """
    ensemble.load(ensemble.mean)
    first = next(ensemble.batches(ensemble.tasks[0], batch_size))
    stages = stages_of(ensemble, first)
    merged: dict[str, Tensor] = {}
    for number, stage in enumerate(stages):
        sums = RegressionSums(alpha)
        for t, task in enumerate(ensemble.tasks):
            ensemble.load_expert(t, stage.tensors)
            with watching(stage.layers) as inputs:
                _pass(ensemble, task, stage, inputs, batch_size)
            sums.add(inputs, partial(ensemble.expert, t))
            done = number * len(ensemble.tasks) + t + 1
            total = len(stages) * len(ensemble.tasks)
            ensemble.listener(Progress("merging layer after layer", done, total, "layers"))
        solvable = set(sums.layers)
        for name in stage.tensors:
            mean = ensemble.mean(name)
            merged[name] = sums.solve(name, mean) if name in solvable else mean
        ensemble.load(merged.__getitem__, stage.tensors)
    others = (name for name in ensemble.tensors if name not in merged)
    return merged | {name: ensemble.mean(name) for name in others}


@dataclass(frozen=True)
class Stage:
    """A part of the network that is merged at once: a block, or a linear layer outside of any."""

    module: nn.Module
    calls: int  # in a forward pass
    tensors: Sequence[str]
    layers: Mapping[str, nn.Linear]  # by the names of their weights


def stages_of(ensemble: Ensemble, batch: Batch) -> list[Stage]:
    """The parts with linear layers, in the order in which a forward pass calls them first."""
    layers = linear_layers(ensemble)
    names = {id(place): name for name, place in ensemble.network.parameters.items()}
    names |= {id(place): name for name, place in ensemble.network.buffers.items()}
    blocks = _blocks(ensemble.network.module)
    inside = {id(part) for block in blocks for part in block.modules()}
    alone = [layer for layer in layers.values() if id(layer) not in inside]
    calls: dict[nn.Module, int] = {}

    def called(part: nn.Module, _inputs: object, _output: object) -> None:
        calls[part] = calls.get(part, 0) + 1

    hooks = [part.register_forward_hook(called) for part in [*blocks, *alone]]
    try:
        with torch.no_grad():
            ensemble.network.features(batch)
    finally:
        for hook in hooks:
            hook.remove()
    wanted, stages = set(ensemble.tensors), []
    for part, count in calls.items():
        places = [*part.parameters(), *part.buffers()]
        own = {id(layer.weight) for layer in part.modules() if isinstance(layer, nn.Linear)}
        found = {name: layer for name, layer in layers.items() if id(layer.weight) in own}
        tensors = [names[id(place)] for place in places if names.get(id(place)) in wanted]
        if found:
            stages.append(Stage(part, count, tensors, found))
    return stages


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The members of lists of modules, but for lists within them."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 0:
            found += list(child)
        else:
            found += _blocks(child)
    return found


class _EndOfPassError(Exception):
    """The part of the network that a pass is for has been called for the last time."""


@torch.no_grad()
def _pass(
    ensemble: Ensemble, task: Task, stage: Stage, inputs: LinearInputs, batch_size: int
) -> None:
    """Pass a task's samples through the network up to the end of a stage."""
    left = 0

    def end(_part: nn.Module, _inputs: object, _output: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise _EndOfPassError

    hook = stage.module.register_forward_hook(end)
    try:
        for batch in ensemble.batches(task, batch_size):
            left = stage.calls
            inputs.starts(batch)
            with contextlib.suppress(_EndOfPassError):
                ensemble.network.features(batch)
    finally:
        hook.remove()
