"""What it costs to read headers strictly, beside the parsing of their JSON and a whole merge."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from momacli.checkpoint.reader import Checkpoint
from tests.benchmarks.merge_cost import measure
from tests.benchmarks.weights import generate

_TIMES = 20


def run(arguments: argparse.Namespace) -> None:
    """Print milliseconds of processor time for the nine files of ViT-B/32."""
    data: Path = arguments.data / "vit"
    (base, *experts), files = generate("vit", data)
    command = [sys.executable, "-m", "momacli", "merge", *map(str, experts), "--base", str(base)]
    command += ["-o", str(data / "merged.safetensors"), "--force", "--method", "average"]
    remembered = {"MOMA_DIGESTS": str(data / "digests")}
    measure(command, environment=remembered)
    merge = measure(command, environment=remembered).processor
    parsed = _least(lambda: [_parse(file) for file in files])
    opened = _least(lambda: [Checkpoint.open(file).close() for file in files])
    print(f"JSON of {len(files)} headers parsed    {1000 * parsed:8.1f} ms")
    print(f"the same files opened         {1000 * opened:8.1f} ms")
    print(f"an average of them            {1000 * merge:8.1f} ms")
    print(f"the checks' share of it       {(opened - parsed) / merge:8.2%}")


def _parse(file: Path) -> None:
    with file.open("rb") as stream:
        json.loads(stream.read(int.from_bytes(stream.read(8), "little")))


def _least(work: Callable[[], object]) -> float:
    """Seconds of processor time, the least of several."""
    found = []
    for _ in range(_TIMES):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of this benchmark."""
    parser.add_argument("--data", type=Path, required=True, help="folder for the weights")
