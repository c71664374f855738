"""One kind of optimization step of one encoder, measured in a process of its own.

    plain         a supervised training step of the encoder on the samples of all tasks, in
                  float32: the floor
    moma          a step of moma's alignment, mask and transforms, in the precision that fits the
                  processor
    moma-float32  the same in float32
    naive         a teacher and a student forward per task, autograd through
                  theta_0 + sigma(S) * tau
    closed        no mask: all samples encoded once, transforms in closed form; seconds and the
                  share of the algebra in them

Writes JSON: processor seconds a step (of `closed`, in all), and the encoder's bytes.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momacli.alignment.encoding import TaskData, encode_all
from momacli.alignment.fit import fit_alignment
from momacli.alignment.settings import Settings
from momacli.features.families import FAMILIES, moments
from momacli.models.device import Precision
from momacli.models.interface import Head
from momacli.progress import Progress
from tests.benchmarks.network import CLASSES, SIZES, Network, images_and_head


def task_vectors(network: Network, seed: int) -> dict[str, Tensor]:
    """A small random step away from the base."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.01 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in network.parameters.items()
    }


def samples(network: Network, tasks: int, count: int) -> list[TaskData]:
    """Images that need no decoding, fine-tuned features of about the right size, and heads."""
    found = []
    for task in range(tasks):
        x, weight = images_and_head(network, task, count)
        head = Head(weight, torch.zeros(CLASSES))
        generator = torch.Generator().manual_seed(100 + task)
        finetuned = torch.randn(count, network.hidden, generator=generator)

        def batch(indices: Tensor, x: Tensor = x) -> dict[str, Tensor]:
            return {"pixel_values": x[indices]}

        found.append(TaskData(str(task), count, batch, finetuned, head))
    return found


def seconds_a_step(step: Callable[[], object], steps: int) -> float:
    """Processor seconds, after one step that is not counted."""
    step()
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def plain(network: Network, tasks: list[TaskData], steps: int) -> float:
    """Train all parameters and the heads' answers with labels."""
    parameters = list(network.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=1e-6)
    x = torch.cat([task.batch(torch.arange(task.count))["pixel_values"] for task in tasks])
    labels = torch.arange(len(x)) % CLASSES
    weight = tasks[0].head.weight

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        logits = network.features({"pixel_values": x}) @ weight.T
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()

    return seconds_a_step(step, steps)


def moma(
    network: Network, tasks: list[TaskData], steps: int, precision: Precision = "auto"
) -> float:
    """Run an alignment; time from the end of its first step to the end of its last."""
    base = {key: value.clone() for key, value in network.parameters.items()}
    for key, tau in task_vectors(network, 1).items():
        network.parameters[key].data.add_(tau)
    times = []

    def listen(event: object) -> None:
        if isinstance(event, Progress) and event.stage == "aligning":
            times.append(time.process_time())

    settings = Settings(steps=steps + 1, batch_size=tasks[0].count, precision=precision)
    fit_alignment(network, base.pop, tasks, settings, headroom=2.0, listener=listen)
    return (times[-1] - times[0]) / steps


def naive(network: Network, tasks: list[TaskData], steps: int) -> float:
    """What the formulas say, task by task."""
    base = {key: value.detach().clone() for key, value in network.parameters.items()}
    tau = task_vectors(network, 1)
    teachers = [
        {key: base[key] + step for key, step in task_vectors(network, 2 + number).items()}
        for number in range(len(tasks))
    ]
    S = {key: torch.zeros_like(value, requires_grad=True) for key, value in base.items()}
    A = [torch.eye(network.hidden, requires_grad=True) for _ in tasks]
    optimizer = torch.optim.Adam([*S.values(), *A], lr=0.1)

    def features(weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(network.module, weights, kwargs=batch)
        found: Tensor = output.last_hidden_state[:, 0]
        return found

    def step() -> None:
        optimizer.zero_grad()
        total = torch.zeros(())
        for task, teacher, matrix in zip(tasks, teachers, A, strict=True):
            batch = task.batch(torch.arange(task.count))
            with torch.no_grad():
                wanted = features(teacher, batch)
            merged = {key: base[key] + torch.sigmoid(S[key]) * tau[key] for key in base}
            total = total + (features(merged, batch) @ matrix.T - wanted).norm(dim=1).mean()
        total.backward()
        optimizer.step()

    return seconds_a_step(step, steps)


def closed(network: Network, tasks: list[TaskData], _steps: int) -> tuple[float, float]:
    """Seconds of one pass over merged and fine-tuned model, and the share of the algebra."""
    started = time.process_time()
    finetuned = encode_all(network, tasks, "fine-tuned")
    merged = encode_all(network, tasks, "merged")
    encoded = time.process_time()
    for z_m, z_t in zip(merged, finetuned, strict=True):
        FAMILIES["orthogonal"](moments(z_m, z_t))
    ended = time.process_time()
    return ended - started, (ended - encoded) / (ended - started)


KINDS: dict[str, Callable[[Network, list[TaskData], int], Any]] = {
    "plain": plain,
    "moma": moma,
    "moma-float32": partial(moma, precision="float32"),
    "naive": naive,
    "closed": closed,
}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--tasks", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples of each task")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    network = Network(given.size)
    tasks = samples(network, given.tasks, given.batch)
    found = KINDS[given.kind](network, tasks, given.steps)
    seconds, share = found if isinstance(found, tuple) else (found, None)
    content = {"seconds": seconds, "algebra": share, "encoder": network.nbytes}
    given.out.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
