"""What a step of an alignment costs, beside others in the same run.

Those are a plain training step of the same encoder on as many samples, and a step written as the
formulas are. Each kind is in a process of its own with one thread, and memory is the most that it
had of its own, torch's included, which no file stands behind. On a GPU seconds are those of a
clock, memory is what torch had allocated there, and moma's steps in bfloat16 stand beside plain
ones in bfloat16.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.benchmarks.machine import called, circumstances
from tests.benchmarks.steps import measured_step

ALIGNMENTS = {
    "cpu": (("vit-b32", 8, 4), ("small", 8, 4), ("small", 8, 16)),
    "cuda": (("vit-b32", 8, 4), ("vit-b32", 8, 16), ("vit-b16", 8, 16), ("vit-l14", 8, 4)),
}
"""Size of the encoder, tasks, and samples of each task in a step."""


@dataclass(frozen=True)
class StepCost:
    """What a step of one kind took."""

    kind: str
    size: str
    tasks: int
    batch: int  # samples of each task
    seconds: float  # of a processor, on a GPU of a clock
    own: int  # bytes of memory
    encoder: int  # bytes of its weights
    share: float | None = None  # of the operations a second in products of matrices

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.tasks * self.batch / self.seconds


def run(arguments: argparse.Namespace) -> None:
    """Print seconds and memory of each kind of step, and perhaps write them."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("align --device cuda: this machine has no usable CUDA device")
    print(
        f"{'':46} {'s/step':>9} {'x plain':>8} {'samples/s':>9} {'of rate':>8} "
        f"{'own GB':>8} {'x encoder':>9}"
    )
    steps = []
    for size, tasks, batch in ALIGNMENTS[arguments.device]:
        for one, floor in _measured(size, tasks, batch, arguments):
            steps.append(one)
            print(
                f"{f'{one.kind}, {size}, {one.tasks} tasks of {one.batch}':46} "
                f"{one.seconds:9.4f} {one.seconds / floor:8.2f} {one.rate:9.1f} "
                f"{'' if one.share is None else f'{one.share:.1%}':>8} "
                f"{one.own / 1e9:8.2f} {one.own / one.encoder:9.1f}",
                flush=True,
            )
        found = measured_step("align_step", "closed", size, tasks, 64, 1, device=arguments.device)
        print(
            f"{f'closed form, {size}, {tasks} tasks of 64':46} {found[1]['seconds']:9.4f} in all, "
            f"of which algebra {found[1]['algebra']:.1%}",
            flush=True,
        )
    if arguments.out:
        command = called("align", arguments, leave_out=("out",))
        content = {**circumstances(command), "steps": [asdict(one) for one in steps]}
        if arguments.device == "cuda":
            content["gpu"] = torch.cuda.get_device_name()
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measured(
    size: str, tasks: int, batch: int, arguments: argparse.Namespace
) -> Iterator[tuple[StepCost, float]]:
    """Each kind of step, and the seconds of the plain one that it is compared with."""
    halves = ["plain-bfloat16"] if arguments.device == "cuda" else []
    kinds = [(kind, tasks) for kind in ("plain", *halves, "moma-float32", "moma")]
    plain: dict[str, dict[str, float]] = {}
    updates = [(kind, tasks) for kind in ("update", "update-compiled")]
    for kind, count in (*kinds, ("moma", 2), *updates, ("naive", tasks)):
        each = batch * tasks // count  # two tasks get as many samples in all
        cost, found = measured_step(
            "align_step", kind, size, count, each, arguments.steps, device=arguments.device
        )
        if kind.startswith("plain"):
            plain[kind] = found
        floor = plain["plain-bfloat16" if halves and kind == "moma" else "plain"]
        floor = plain.get(kind, floor)
        seconds, own = found["seconds"], int(found.get("allocated", cost.own))
        share = floor["operations"] / seconds / floor["rate"]
        known = share if kind.startswith(("plain", "moma")) else None
        encoder = int(found["encoder"])
        yield StepCost(kind, size, count, each, seconds, own, encoder, known), floor["seconds"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of this benchmark."""
    parser.add_argument("--steps", type=int, default=10, help="to measure of each kind")
    parser.add_argument("--device", choices=sorted(ALIGNMENTS), default="cpu")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
