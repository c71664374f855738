"""What a step of an alignment costs, beside others in the same run.

Those are a plain training step of the same encoder on as many samples, and a step written as the
formulas are. Each kind is in a process of its own with one thread, and memory is the most that it
had of its own, torch's included, which no file stands behind.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.machine import called, circumstances
from tests.benchmarks.steps import measured_step

ALIGNMENTS = (("vit-b32", 8, 4), ("small", 8, 4), ("small", 8, 16))
"""Size of the encoder, tasks, and samples of each task in a step."""


@dataclass(frozen=True)
class StepCost:
    """What a step of one kind took."""

    kind: str
    size: str
    tasks: int
    batch: int  # samples of each task
    seconds: float  # of a processor
    own: int  # bytes of memory
    encoder: int  # bytes of its weights


def run(arguments: argparse.Namespace) -> None:
    """Print seconds and memory of each kind of step, and perhaps write them."""
    print(f"{'':44} {'CPU s/step':>10} {'x plain':>8} {'own GB':>8} {'x encoder':>9}")
    steps = []
    for size, tasks, batch in ALIGNMENTS:
        floor = None
        kinds = (("plain", tasks), ("moma-float32", tasks), ("moma", tasks), ("moma", 2))
        for kind, count in (*kinds, ("naive", tasks)):
            each = batch * tasks // count  # two tasks get as many samples in all
            cost, found = measured_step("align_step", kind, size, count, each, arguments.steps)
            seconds, encoder = found["seconds"], int(found["encoder"])
            floor = floor or seconds
            steps.append(StepCost(kind, size, count, each, seconds, cost.own, encoder))
            print(
                f"{f'{kind}, {size}, {count} tasks of {each}':44} {seconds:10.3f} "
                f"{seconds / floor:8.2f} {cost.own / 1e9:8.2f} {cost.own / encoder:9.1f}",
                flush=True,
            )
        _, found = measured_step("align_step", "closed", size, tasks, 64, 1)
        print(
            f"{f'closed form, {size}, {tasks} tasks of 64':44} {found['seconds']:10.3f} in all, "
            f"of which algebra {found['algebra']:.1%}",
            flush=True,
        )
    if arguments.out:
        command = called("align", arguments, leave_out=("out",))
        content = {**circumstances(command), "steps": [asdict(one) for one in steps]}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of this benchmark."""
    parser.add_argument("--steps", type=int, default=10, help="to measure of each kind")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
