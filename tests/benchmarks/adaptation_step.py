"""One kind of step of a merge that lowers entropy, measured in a process of its own.

    plain             a supervised training step of the encoder on the samples of all tasks
    adamerging        a layer-wise step of moma's, in the precision that fits the processor
    adamerging-float32  the same in float32
    adamerging-naive  autograd through theta_0 + sum_t lambda_t tau_t, a backward pass a task
    concrete          a step of moma's concrete task arithmetic, likewise
    concrete-float32
    concrete-naive    autograd through theta_0 + sum_t lambda m * tau_t, one backward pass in all

The naive ones do what FusionBench 0.2.33 does, as fusionbench_step.py runs it. Writes JSON:
processor seconds a step.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from momacli.adaptation.adamerging import adamerging
from momacli.adaptation.concrete_task_arithmetic import concrete_task_arithmetic
from momacli.adaptation.ensemble import Ensemble, Task
from momacli.progress import Progress
from tests.benchmarks.align_step import plain, samples, seconds_a_step
from tests.benchmarks.network import SIZES, Network

METHODS = {"adamerging": adamerging, "concrete": concrete_task_arithmetic}
KINDS = ("plain", *(method + end for method in METHODS for end in ("", "-float32", "-naive")))


def ensemble_of(network: Network, tasks: int, batch: int, listener: Callable) -> Ensemble:
    """The base and its experts, made a tensor at a time as others are read from files."""
    return Ensemble(
        network=network,
        tensors=list(network.parameters),
        tasks=[
            Task(task.task, task.count, task.batch, task.head)
            for task in samples(network, tasks, batch)
        ],
        base=network.base,
        expert=network.expert,
        listener=listener,
    )


def moma(network: Network, kind: str, tasks: int, batch: int, steps: int) -> float:
    """Run a method; time from the end of its first step to the end of its last."""
    times = []

    def listen(event: object) -> None:
        if isinstance(event, Progress) and event.unit == "steps":
            times.append(time.process_time())

    ensemble = ensemble_of(network, tasks, batch, listen)
    method, _, precision = kind.partition("-")
    METHODS[method](ensemble, steps=steps + 1, batch_size=batch, precision=precision or "auto")
    return (times[-1] - times[0]) / steps


def naive(network: Network, kind: str, tasks: int, batch: int, steps: int) -> float:
    """What the formulas say, with autograd through the merge."""
    data = samples(network, tasks, batch)
    base = {name: value.detach() for name, value in network.parameters.items()}
    taus = [{name: network.expert(t, name) - base[name] for name in base} for t in range(tasks)]
    if kind == "concrete-naive":
        learned = {name: torch.zeros_like(x, requires_grad=True) for name, x in base.items()}
    else:
        learned = {name: torch.full((tasks,), 0.3, requires_grad=True) for name in base}
    optimizer = torch.optim.Adam(learned.values(), lr=1e-3)

    def merged() -> dict[str, Tensor]:
        found = {}
        for name, theta in base.items():
            if kind == "concrete-naive":
                temperature = torch.tensor(0.5)
                relaxed = torch.distributions.RelaxedBernoulli(temperature, logits=learned[name])
                mask = relaxed.rsample()
                mask = mask / mask.mean()
                for tau in taus:
                    theta = theta + tau[name] * (0.3 * mask)
            else:
                for t, tau in enumerate(taus):
                    theta = theta + tau[name] * learned[name][t]
            found[name] = theta
        return found

    def step() -> None:
        optimizer.zero_grad()
        weights, total = merged(), torch.zeros(())
        for task in data:
            inputs = task.batch(torch.arange(task.count))
            output = torch.func.functional_call(network.module, weights, kwargs=inputs)
            p = task.head(output.last_hidden_state[:, 0]).softmax(dim=-1)
            loss = -(p * (p + 1e-8).log()).sum(dim=-1).mean()
            if kind == "concrete-naive":
                total = total + loss
            else:
                loss.backward(retain_graph=True)
        if kind == "concrete-naive":
            total.backward()
        optimizer.step()

    return seconds_a_step(step, steps)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples of each task")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    network = Network(given.size)
    numbers = (given.tasks, given.batch, given.steps)
    if given.kind == "plain":
        found = plain(network, samples(network, given.tasks, given.batch), given.steps)
        seconds = found["seconds"]
    elif given.kind.endswith("naive"):
        seconds = naive(network, given.kind, *numbers)
    else:
        seconds = moma(network, given.kind, *numbers)
    given.out.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
