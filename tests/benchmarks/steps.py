"""One kind of step, measured in a process of its own."""

import json
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.merge_cost import Cost, measure


def measured_step(
    module: str,
    kind: str,
    size: str,
    tasks: int,
    batch: int,
    steps: int,
    *,
    python: str | None = None,
    threads: int = 1,
    device: str = "cpu",
) -> tuple[Cost, dict[str, float]]:
    """Run a kind of step of a module of this folder; returns what it took, and what it wrote.

    python: the interpreter, by default this one.
    """
    command = [python or sys.executable, "-m", f"tests.benchmarks.{module}", kind, "--size", size]
    command += ["--tasks", str(tasks), "--batch", str(batch), "--steps", str(steps)]
    command += [] if device == "cpu" else ["--device", device]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = {"OMP_NUM_THREADS": str(threads)}
        cost = measure([*command, "--out", str(result)], environment=environment)
        return cost, json.loads(result.read_text())
