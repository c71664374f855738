"""`python -m tests.benchmarks merge --data DIR`: what a merge costs, as whole processes.

In one run, side by side: the floor (`cat` of every input, `cp` of one), moma method by method,
and mergekit where `--mergekit` names an interpreter that has it. Weights of real shapes are
generated once in DIR: "vit" is CLIP ViT-B/32's image encoder and 8 experts in float32 (3.2 GB),
"llm" TinyLlama 1.1B and 3 experts in bfloat16, each in shards (8.8 GB).

`python -m tests.benchmarks align`: what a step of an alignment costs, beside a plain training
step of the same encoder on as many samples and a step written as the formulas are.

`python -m tests.benchmarks SUITE --data-root DIR --out DIR`: what merges and alignments are
worth on real data. A suite is a file in `suites/`; see its docstring. Trained experts, merges,
alignments and scores are kept in OUT/cells by the content of what they were made from, so a run
that was stopped goes on, and one with another setting does only what is new.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from tests.benchmarks.cells import Cells
from tests.benchmarks.comparison import as_json, compare, table
from tests.benchmarks.weights import SETS, generate

METHODS = (
    "average", "task-arithmetic", "ties", "breadcrumbs", "dare", "dare-ties", "model-stock",
)  # fmt: skip
OPTIONS = {"dare-ties": ("dare", "--set", "then=ties")}
"""moma's method and options, where a row is not called after its method."""

MERGEKIT = {
    "average": ("linear", {"weight": 0.125}),
    "task-arithmetic": ("task_arithmetic", {"weight": 0.3}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}),
    "breadcrumbs": ("breadcrumbs", {"weight": 0.3, "density": 0.09, "gamma": 0.01}),
    "dare": ("dare_linear", {"weight": 0.125, "density": 0.1}),
    "dare-ties": ("dare_ties", {"weight": 1.0, "density": 0.1}),
    "model-stock": ("model_stock", {}),
}
"""mergekit's name of each method, and the parameters of every model."""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    processor: float  # seconds, user and system
    wall: float
    own: int  # bytes of memory of its own at most, without mapped files


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
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - started, own)


def anonymous(process: int) -> int:
    """Bytes of a process's memory that no file stands behind; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def mergekit_config(method: str, models: list[Path], dtype: str) -> str:
    """A configuration for `mergekit-pytorch` (files) or `mergekit-yaml` (folders); JSON is YAML."""
    name, parameters = MERGEKIT[method]
    experts = [{"model": str(model), "parameters": parameters} for model in models[1:]]
    config: dict[str, object] = {"merge_method": name, "models": experts, "dtype": dtype}
    if name != "linear":
        config["base_model"] = str(models[0])
    return json.dumps(config)


def show(what: str, cost: Cost, floor: float) -> None:
    """Print one row."""
    print(
        f"{what:34} {cost.processor:8.2f} {cost.processor / floor:8.1f} {cost.wall:8.1f} "
        f"{cost.own / 1e9:8.2f}",
        flush=True,
    )


def merge(arguments: argparse.Namespace) -> None:
    """Measure merges of one set of weights."""
    data: Path = arguments.data / arguments.set
    models, files = generate(arguments.set, data)
    output = data / ("merged.safetensors" if models[0].is_file() else "merged")
    print(f"{'':34} {'CPU s':>8} {'x floor':>8} {'wall s':>8} {'own GB':>8}")
    read = measure(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)])
    one = [file for file in files if file == models[0] or models[0] in file.parents]
    copy = data / "copy"
    write = measure(["sh", "-c", 'cat "$@" > "$0"', str(copy), *map(str, one)])
    copy.unlink()
    floor = read.processor + write.processor
    show("floor: cat all, cp one", Cost(floor, read.wall + write.wall, 0), floor)
    show("import torch", measure([sys.executable, "-c", "import torch"]), floor)
    remembered = data / "digests"
    for method in arguments.methods:
        for kind, digests in (("hashing", "off"), ("digests known", str(remembered))):
            command = [sys.executable, "-m", "momacli", "merge", *map(str, models[1:])]
            command += ["--base", str(models[0]), "-o", str(output), "--force"]
            command += ["--method", *OPTIONS.get(method, (method,))]
            if kind == "digests known" and not remembered.exists():
                measure(command, environment={"MOMA_DIGESTS": digests})
            cost = measure(command, environment={"MOMA_DIGESTS": digests})
            show(f"moma {method}, {kind}", cost, floor)
        if arguments.mergekit and method in MERGEKIT:
            tool = "mergekit-pytorch" if models[0].is_file() else "mergekit-yaml"
            config, out = data / "mergekit.yml", data / "mergekit"
            dtype = "float32" if arguments.set == "vit" else "bfloat16"
            config.write_text(mergekit_config(method, models, dtype))
            command = [str(arguments.mergekit.parent / tool), str(config), str(out)]
            show(f"mergekit {MERGEKIT[method][0]}", measure(command), floor)
            shutil.rmtree(out, ignore_errors=True)


def run_suite(arguments: argparse.Namespace) -> None:
    """Print the table of a suite and write OUT/SUITE.json."""
    suite_file = suite_named(arguments.suite)
    cells = Cells(arguments.out / "cells")
    suite, plan = suite_file.prepare(arguments, cells), suite_file.plan_of(arguments)
    rows = compare(suite, plan, cells, processes=arguments.processes)
    print(table(rows))
    content = as_json(suite, plan, rows) | {"machine": machine()}
    target = arguments.out / f"{suite.name}.json"
    target.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"written: {target}")


ALIGNMENTS = (("vit-b32", 8, 4), ("small", 8, 4), ("small", 8, 16))
"""Size of the encoder, tasks, and samples of each task in a step."""


def align(arguments: argparse.Namespace) -> None:
    """Measure steps of alignments; each kind in a process of its own, one thread each."""
    print(f"{'':44} {'CPU s/step':>10} {'x plain':>8} {'own GB':>8} {'x encoder':>9}")
    for size, tasks, batch in ALIGNMENTS:
        floor = None
        for kind, count in (("plain", tasks), ("moma", tasks), ("moma", 2), ("naive", tasks)):
            each = batch * tasks // count  # two tasks get as many samples in all
            cost, found = alignment_step(kind, size, count, each, arguments.steps)
            seconds = found["seconds"]
            floor = floor or seconds
            print(
                f"{f'{kind}, {size}, {count} tasks of {each}':44} {seconds:10.3f} "
                f"{seconds / floor:8.2f} {cost.own / 1e9:8.2f} {cost.own / found['encoder']:9.1f}",
                flush=True,
            )
        _, found = alignment_step("closed", size, tasks, 64, 1)
        print(
            f"{f'closed form, {size}, {tasks} tasks of 64':44} {found['seconds']:10.3f} in all, "
            f"of which algebra {found['algebra']:.1%}",
            flush=True,
        )


def alignment_step(
    kind: str, size: str, tasks: int, batch: int, steps: int
) -> tuple[Cost, dict[str, float]]:
    """Measure one kind of step."""
    command = [sys.executable, "-m", "tests.benchmarks.align_step", kind, "--size", size]
    command += ["--tasks", str(tasks), "--batch", str(batch), "--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        cost = measure([*command, "--out", str(result)], environment={"OMP_NUM_THREADS": "1"})
        return cost, json.loads(result.read_text())


def suite_named(name: str) -> ModuleType:
    """The module of a suite."""
    return importlib.import_module(f"tests.benchmarks.suites.{name}")


def machine() -> dict[str, object]:
    """What the results depend on besides."""
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {"processor": platform.machine(), "python": platform.python_version(), **versions}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("merge", help="what a merge costs")
    command.add_argument("--data", type=Path, required=True, help="folder for the weights")
    command.add_argument("--set", choices=sorted(SETS), default="vit")
    command.add_argument("--methods", nargs="+", default=METHODS)
    command.add_argument("--mergekit", type=Path, help="a Python that has mergekit 0.1.5")
    command.set_defaults(run=merge)
    command = commands.add_parser("align", help="what a step of an alignment costs")
    command.add_argument("--steps", type=int, default=10, help="to measure of each kind")
    command.set_defaults(run=align)
    for file in sorted((Path(__file__).parent / "suites").glob("*.py")):
        suite = suite_named(file.stem)
        assert suite.__doc__ is not None
        command = commands.add_parser(file.stem, help=suite.__doc__.splitlines()[0])
        command.add_argument("--out", type=Path, required=True, help="folder for all results")
        command.add_argument("--processes", type=int, default=2, help="of one thread each")
        command.add_argument("--seed", type=int, default=0)
        suite.add_arguments(command)
        command.set_defaults(run=run_suite, suite=file.stem)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
