"""One kind of optimization step of one encoder, measured in a process of its own.

    plain         a supervised training step of the encoder on the samples of all tasks, in
                  float32: the floor
    plain-bfloat16  the same in bfloat16
    moma          a step of moma's alignment, mask and transforms, in the precision that fits the
                  device
    moma-float32  the same in float32
    update        what such a step does but for the encoder's passes: S, Adam's moments and the
                  merged weights of one gradient
    update-compiled  the same by torch.compile, in one kernel
    naive         a teacher and a student forward per task, autograd through
                  theta_0 + sigma(S) * tau
    closed        no mask: all samples encoded once, transforms in closed form; seconds and the
                  share of the algebra in them

Writes JSON: seconds a step (of `closed`, in all), of the processor, or on a GPU of a clock; the
encoder's bytes; the most bytes that a GPU had allocated; of plain steps the floating-point
operations, and how many a second the device has in products of large matrices.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from momacli.alignment.encoding import TaskData, encode_all
from momacli.alignment.fit import fit_alignment
from momacli.alignment.mask import MaskedEncoder, advance
from momacli.alignment.settings import Settings
from momacli.features.families import FAMILIES, moments
from momacli.models.device import Precision
from momacli.models.interface import Head
from momacli.progress import Progress
from tests.benchmarks.network import CLASSES, SIZES, Network, images_and_head

_PROCESSOR = torch.device("cpu")


def task_vectors(network: Network, seed: int) -> dict[str, Tensor]:
    """A small random step away from the base."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.01 * torch.randn(parameter.shape, generator=generator).to(network.device)
        for name, parameter in network.parameters.items()
    }


def samples(network: Network, tasks: int, count: int) -> list[TaskData]:
    """Images that need no decoding, fine-tuned features of about the right size, and heads."""
    found = []
    for task in range(tasks):
        x, weight = (one.to(network.device) for one in images_and_head(network, task, count))
        head = Head(weight, torch.zeros(CLASSES, device=network.device))
        generator = torch.Generator().manual_seed(100 + task)
        finetuned = torch.randn(count, network.hidden, generator=generator).to(network.device)

        def batch(indices: Tensor, x: Tensor = x) -> dict[str, Tensor]:
            return {"pixel_values": x[indices]}

        found.append(TaskData(str(task), count, batch, finetuned, head))
    return found


def now(device: torch.device) -> float:
    """Seconds of this process's processor, or of a clock when a GPU has done what it was given."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_a_step(
    step: Callable[[], object], steps: int, device: torch.device = _PROCESSOR
) -> float:
    """Seconds, after one step that is not counted."""
    step()
    started = now(device)
    for _ in range(steps):
        step()
    return (now(device) - started) / steps


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second in products of square matrices, the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_a_step(lambda: a @ b, 3, device) for _ in range(5))


def plain(
    network: Network, tasks: list[TaskData], steps: int, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Train all parameters and the heads' answers with labels."""
    device = network.device
    parameters = list(network.parameters.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=1e-6)
    x = torch.cat([task.batch(torch.arange(task.count))["pixel_values"] for task in tasks])
    labels = torch.arange(len(x), device=device) % CLASSES
    weight = tasks[0].head.weight

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features = network.features({"pixel_values": x})
        nn.functional.cross_entropy(features.float() @ weight.T, labels).backward()
        optimizer.step()

    seconds = seconds_a_step(step, steps, device)
    with FlopCounterMode(display=False) as counter:
        step()
    operations = float(counter.get_total_flops())
    return {
        "seconds": seconds,
        "operations": operations,
        "rate": matmul_rate(dtype, device),
    }


def moma(
    network: Network, tasks: list[TaskData], steps: int, precision: Precision = "auto"
) -> dict[str, float]:
    """Run an alignment; time from the end of its first step to the end of its last."""
    base = {key: value.clone() for key, value in network.parameters.items()}
    for key, tau in task_vectors(network, 1).items():
        network.parameters[key].data.add_(tau)
    times = []

    def listen(event: object) -> None:
        aligning = isinstance(event, Progress) and event.stage == "aligning"
        if aligning and event.done in (1, event.total):  # a GPU is waited for at both ends alone
            times.append(now(network.device))

    settings = Settings(steps=steps + 1, batch_size=tasks[0].count, precision=precision)
    fit_alignment(network, base.pop, tasks, settings, headroom=2.0, listener=listen)
    return {"seconds": (times[-1] - times[0]) / steps}


def update(
    network: Network, _tasks: list[TaskData], steps: int, *, compiled: bool = False
) -> dict[str, float]:
    """Move the mask, and the weights with it."""
    base = {key: value.clone() for key, value in network.parameters.items()}
    for key, tau in task_vectors(network, 1).items():
        network.parameters[key].data.add_(tau)
    masked = MaskedEncoder(network.parameters, base.pop, headroom=2.0, start=0.0)
    masked.restart()
    way = torch.compile(advance) if compiled else advance
    with patch("momacli.alignment.mask.advance", way):
        step = partial(masked.step, rate=0.1, sparsity=5e-9)
        step()  # compiled for the first number of steps, and at the second for any
        return {"seconds": seconds_a_step(step, steps, network.device)}


def naive(network: Network, tasks: list[TaskData], steps: int) -> dict[str, float]:
    """What the formulas say, task by task."""
    base = {key: value.detach().clone() for key, value in network.parameters.items()}
    device = network.device
    tau = {key: step.to(device) for key, step in task_vectors(network, 1).items()}
    teachers = [
        {
            key: base[key] + step.to(device)
            for key, step in task_vectors(network, 2 + number).items()
        }
        for number in range(len(tasks))
    ]
    S = {key: torch.zeros_like(value, requires_grad=True) for key, value in base.items()}
    A = [torch.eye(network.hidden, device=device, requires_grad=True) for _ in tasks]
    optimizer = torch.optim.Adam([*S.values(), *A], lr=0.1)

    def features(weights: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(network.module, weights, kwargs=batch)
        found: Tensor = output.last_hidden_state[:, 0]
        return found

    def step() -> None:
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for task, teacher, matrix in zip(tasks, teachers, A, strict=True):
            batch = task.batch(torch.arange(task.count))
            with torch.no_grad():
                wanted = features(teacher, batch)
            merged = {key: base[key] + torch.sigmoid(S[key]) * tau[key] for key in base}
            total = total + (features(merged, batch) @ matrix.T - wanted).norm(dim=1).mean()
        total.backward()
        optimizer.step()

    return {"seconds": seconds_a_step(step, steps, device)}


def closed(network: Network, tasks: list[TaskData], _steps: int) -> dict[str, float]:
    """Seconds of one pass over merged and fine-tuned model, and the share of the algebra."""
    started = now(network.device)
    finetuned = encode_all(network, tasks, "fine-tuned")
    merged = encode_all(network, tasks, "merged")
    encoded = now(network.device)
    for z_m, z_t in zip(merged, finetuned, strict=True):
        FAMILIES["orthogonal"](moments(z_m, z_t))
    ended = now(network.device)
    return {"seconds": ended - started, "algebra": (ended - encoded) / (ended - started)}


KINDS: dict[str, Callable[[Network, list[TaskData], int], dict[str, float]]] = {
    "plain": plain,
    "plain-bfloat16": partial(plain, dtype=torch.bfloat16),
    "moma": moma,
    "moma-float32": partial(moma, precision="float32"),
    "update": update,
    "update-compiled": partial(update, compiled=True),
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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    network = Network(given.size, given.device)
    tasks = samples(network, given.tasks, given.batch)
    content = {"encoder": network.nbytes, **KINDS[given.kind](network, tasks, given.steps)}
    if network.device.type == "cuda":
        content["allocated"] = torch.cuda.max_memory_allocated(network.device)
    given.out.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
