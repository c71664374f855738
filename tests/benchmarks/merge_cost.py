"""What a merge costs, as whole processes side by side in one run.

The floor is `cat` of every input and `cp` of one. Start-up is what the same command takes with
--dry-run, which opens every input but reads no tensor.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import called, circumstances
from tests.benchmarks.weights import SETS, generate


@dataclass(frozen=True)
class Row:
    """A merge by moma and, where it has the method, by mergekit."""

    options: Sequence[str]  # of `moma merge`
    mergekit: str | None = None
    parameters: Mapping[str, float | bool] = field(default_factory=dict)  # of every model there
    shared: Mapping[str, float | bool] = field(default_factory=dict)
    experts: int | None = None  # as many as there are, by default
    base: bool = True  # whether mergekit's method knows one


def _method(name: str, *options: str) -> tuple[str, ...]:
    return ("--method", name, *options)


_HALF = {"weight": 0.5}
ROWS = {
    "average": Row(_method("average"), "linear", {"weight": 0.125}, base=False),
    "task-arithmetic": Row(_method("task-arithmetic"), "task_arithmetic", {"weight": 0.3}),
    "ties": Row(_method("ties"), "ties", {"weight": 1.0, "density": 0.2}),
    "breadcrumbs": Row(
        _method("breadcrumbs"), "breadcrumbs", {"weight": 0.3, "density": 0.09, "gamma": 0.01}
    ),
    "dare": Row(_method("dare"), "dare_linear", {"weight": 0.125, "density": 0.1}),
    "dare-ties": Row(
        _method("dare", "--set", "then=ties"), "dare_ties", {"weight": 1.0, "density": 0.1}
    ),
    "della": Row(_method("della"), "della", {"weight": 1.0, "density": 0.7, "epsilon": 0.07}),
    "model-stock": Row(_method("model-stock"), "model_stock"),
    "sce": Row(_method("sce"), "sce", shared={"select_topk": 0.1}),
    "slerp": Row(_method("slerp"), "slerp", shared={"t": 0.5}, experts=2),
    "nuslerp": Row(_method("nuslerp"), "nuslerp", _HALF, experts=2),
    "multislerp": Row(_method("multislerp"), "multislerp", {"weight": 0.125}),
    "karcher": Row(_method("karcher"), "karcher", base=False),
    "arcee-fusion": Row(_method("arcee-fusion"), "arcee_fusion", experts=1),
    "magmax": Row(_method("magmax")),
    "pcb": Row(_method("pcb")),
    "consensus": Row(_method("consensus")),
}


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    processor: float  # seconds, user and system
    wall: float
    own: int  # bytes of memory of its own at most, without mapped files
    peak: int  # bytes of memory at most, with them


def measure(command: list[str], *, environment: dict[str, str] | None = None) -> Cost:
    """Run a command to its end, looking at its memory 50 times a second."""
    started, own = time.monotonic(), 0
    with Path(os.devnull).open("wb") as null:
        process = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdout=null, stderr=subprocess.PIPE
        )
    waiting = threading.Event()

    def watch() -> None:
        nonlocal own
        while not waiting.wait(0.02):
            own = max(own, anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    waiting.set()
    watcher.join()
    if status:
        sys.exit(f"{' '.join(command)}\n{errors.decode(errors='replace')[-2000:]}")
    processor, peak = usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss
    return Cost(processor, time.monotonic() - started, own, peak)


def anonymous(process: int) -> int:
    """Bytes of a process's memory that no file stands behind; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def mergekit_config(row: Row, models: Sequence[Path], dtype: str) -> str:
    """A configuration for `mergekit-pytorch` (files) or `mergekit-yaml` (folders); JSON is YAML."""
    base, *experts = models
    if row.mergekit == "slerp":  # between its base and one model
        base, *experts = experts
    config: dict[str, Any] = {
        "merge_method": row.mergekit,
        "models": [{"model": str(one), "parameters": dict(row.parameters)} for one in experts],
        "parameters": dict(row.shared),
        "dtype": dtype,
    }
    return json.dumps(config | ({"base_model": str(base)} if row.base else {}))


def _show(what: str, cost: Cost, floor: float, start: float = 0.0, beside: str = "") -> None:
    net = f"{(cost.processor - start) / floor:8.1f}" if start else f"{'':8}"
    print(
        f"{what:34} {cost.processor:8.2f} {cost.processor / floor:8.1f} {net} "
        f"{cost.wall:8.1f} {cost.own / 1e9:8.2f} {beside:>10}",
        flush=True,
    )


def _floor(models: Sequence[Path], files: Sequence[Path], place: Path) -> Cost:
    """`cat` of all files, and a copy of those of one model."""
    read = measure(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)])
    one = [file for file in files if file == models[0] or models[0] in file.parents]
    write = measure(["sh", "-c", 'cat "$@" > "$0"', str(place), *map(str, one)])
    place.unlink()
    return Cost(read.processor + write.processor, read.wall + write.wall, 0, 0)


def run(arguments: argparse.Namespace) -> None:
    """Measure merges of one set of weights, print the table, and perhaps write it."""
    data: Path = arguments.data / arguments.set
    models, files = generate(arguments.set, data)
    print(
        f"{'':34} {'CPU s':>8} {'x floor':>8} {'net':>8} {'wall s':>8} {'own GB':>8} "
        f"{'x mergekit':>10}"
    )
    floor = min((_floor(models, files, data / "copy") for _ in range(arguments.times)), key=_spent)
    _show("floor: cat all, cp one", floor, floor.processor)
    _show("import torch", measure([sys.executable, "-c", "import torch"]), floor.processor)
    rows = [
        _measure_row(name, ROWS[name], models, data, floor.processor, arguments)
        for name in arguments.methods or [name for name in ROWS if ROWS[name].mergekit]
    ]
    print("net: without start-up, in multiples of the floor")
    if arguments.out:
        command = called("merge", arguments, leave_out=("out",))
        content = {**circumstances(command), "floor": asdict(floor), "merges": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _spent(cost: Cost) -> float:
    return cost.processor


def _measure_row(
    name: str,
    row: Row,
    models: Sequence[Path],
    data: Path,
    floor: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Measure a method, the least of several times; mergekit, which is slow, once."""
    base, *experts = models[: 1 + (row.experts or len(models))]
    theirs = None
    if arguments.mergekit and row.mergekit:
        tool = "mergekit-pytorch" if base.is_file() else "mergekit-yaml"
        config, out = data / "mergekit.yml", data / "mergekit"
        dtype = "float32" if arguments.set == "vit" else "bfloat16"
        config.write_text(mergekit_config(row, [base, *experts], dtype))
        theirs = measure([str(arguments.mergekit.parent / tool), str(config), str(out)])
        shutil.rmtree(out, ignore_errors=True)
    output = data / ("merged.safetensors" if base.is_file() else "merged")
    command = [sys.executable, "-m", "momacli", "merge", *map(str, experts)]
    command += ["--base", str(base), "-o", str(output), "--force", *row.options]
    remembered = data / "digests"
    if not remembered.exists():
        measure(command, environment={"MOMA_DIGESTS": str(remembered)})

    def least(*more: str, digests: str) -> Cost:
        costs = (
            measure([*command, *more], environment={"MOMA_DIGESTS": digests})
            for _ in range(arguments.times)
        )
        return min(costs, key=_spent)

    start = least("--dry-run", digests="off").processor
    found: dict[str, Any] = {"method": name, "start": start}
    for kind, digests in (("hashing", "off"), ("digests known", str(remembered))):
        cost = least(digests=digests)
        beside = f"{cost.processor / theirs.processor:.2f}" if theirs else ""
        _show(f"moma {name}, {kind}", cost, floor, start, beside)
        found[kind] = asdict(cost)
    if theirs:
        _show(f"mergekit {row.mergekit}", theirs, floor)
        found["mergekit"] = asdict(theirs)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of this benchmark."""
    parser.add_argument("--data", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--set", choices=sorted(SETS), default="vit")
    parser.add_argument("--methods", nargs="+", choices=sorted(ROWS), help="of the table's rows")
    parser.add_argument("--mergekit", type=Path, help="a Python that has mergekit 0.1.5")
    parser.add_argument("--times", type=int, default=1, help="the least of so many runs counts")
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
