"""Steps of FusionBench's own AdaMerging and Concrete, measured where FusionBench is installed.

    adamerging  layer-wise, its `test_time_adaptation`
    concrete    task arithmetic under a learned mask, its `setup_models` and `train_mask`

The algorithms run as they are, on the weights and samples that moma is measured with; only what
would load models, data and heads from the hub is replaced. Their settings are those of its
configuration files. Writes JSON: processor seconds a step.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import lightning
import torch
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.method.concrete_subspace.clip_concrete_task_arithmetic import (
    ConcreteTaskArithmeticAlgorithmForCLIP,
)
from lightning.fabric.loggers.logger import Logger
from omegaconf import DictConfig
from torch import Tensor, nn

from tests.benchmarks.network import Network, images_and_head

SETTINGS = {
    "adamerging": {
        "weights": None, "init_values": 0.3, "clamp_weights": False, "tie_weights": True,
        "strict": False, "optimizer": "adam", "lr": 1e-3,
    },
    "concrete": {
        "scaling_factor": 0.3, "initial_logits": 0, "temperature": 0.5, "clamp_weights": False,
        "tie_weights": True, "strict": False, "optimizer": "adam", "lr": 1e-3,
        "merge_dtype": None, "save_interval": 10**9, "eval_mask_type": "continuous",
    },
}  # fmt: skip


class Clock(Logger):
    """Notes the processor time at the end of each step, when an algorithm logs its loss."""

    name, version = "clock", 0

    def __init__(self) -> None:
        self.times: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.times.append(time.process_time())

    def log_hyperparams(self, *given: object, **named: object) -> None:
        """Keep nothing."""


class Models:
    """What an algorithm takes models from."""

    def __init__(self, network: Network, tasks: int):
        self._network = network
        self.model_names = [str(task) for task in range(tasks)]

    @torch.no_grad()
    def load_model(self, name: str) -> nn.Module:
        if name == "_pretrained_":
            return self._network.module.requires_grad_(True)
        model = copy.deepcopy(self._network.module)
        for key, parameter in model.named_parameters():
            parameter.copy_(self._network.expert(int(name), key))
        return model


class OnSamples:
    """Samples and heads in the place of those that CLIP's classes would load."""

    def give(self, network: Network, tasks: int, batch: int) -> None:
        found = {str(t): images_and_head(network, t, batch) for t in range(tasks)}
        self.samples = {task: x for task, (x, _) in found.items()}
        self.heads = {task: head for task, (_, head) in found.items()}

    def get_shuffled_test_loader_iter(self, task: str) -> Iterator[tuple[Tensor]]:
        return iter([(self.samples[task],)])

    def compute_logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
        output = module(pixel_values=images)
        logits: Tensor = output.last_hidden_state[:, 0] @ self.heads[task].T
        return logits


class AdaMerging(OnSamples, LayerWiseAdaMergingAlgorithm):
    """Layer-wise AdaMerging on these."""

    def adapt(self) -> None:
        module = self.construct_layer_wise_merged_model(self.modelpool)
        self.test_time_adaptation(module)


class Concrete(OnSamples, ConcreteTaskArithmeticAlgorithmForCLIP):
    """Concrete task arithmetic on these."""

    def adapt(self) -> None:
        self.train_mask(*self.setup_models())


def seconds_a_step(kind: str, size: str, tasks: int, batch: int, steps: int) -> float:
    """Processor seconds from the end of the first step to the end of the last."""
    clock, network = Clock(), Network(size)
    made = {"adamerging": AdaMerging, "concrete": Concrete}[kind]
    algorithm = made(DictConfig({**SETTINGS[kind], "max_steps": steps + 1}))
    algorithm.fabric = lightning.Fabric(accelerator="cpu", devices=1, loggers=[clock])
    algorithm.modelpool = Models(network, tasks)
    algorithm.give(network, tasks, batch)
    algorithm.adapt()
    return (clock.times[-1] - clock.times[0]) / steps


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(SETTINGS))
    parser.add_argument("--size", required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples of each task")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    seconds = seconds_a_step(given.kind, given.size, given.tasks, given.batch, given.steps)
    given.out.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
