"""`python -m tests.benchmarks merge --data DIR`: what a merge costs, as whole processes.

In one run, side by side: the floor (`cat` of every input, `cp` of one), moma method by method,
and mergekit where `--mergekit` names an interpreter that has it. Weights of real shapes are
generated once in DIR: "vit" is CLIP ViT-B/32's image encoder and 8 experts in float32 (3.2 GB),
"llm" TinyLlama 1.1B and 3 experts in bfloat16, each in shards (8.8 GB).

`python -m tests.benchmarks align`: what a step of an alignment costs, beside a plain training
step of the same encoder on as many samples and a step written as the formulas are.

`python -m tests.benchmarks adapt`: what a step of AdaMerging and of Concrete costs, likewise.

`python -m tests.benchmarks features`: what methods cost that see cached features alone.

`python -m tests.benchmarks SUITE --data-root DIR --out DIR`: what merges and alignments are
worth on real data. A suite is a file in `suites/`; see its docstring. Trained experts, merges,
alignments and scores are kept in OUT/cells by the content of what they were made from, so a run
that was stopped goes on, and one with another setting does only what is new.
"""

import argparse
import importlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from tests.benchmarks import headers, large, merge_cost, on_features
from tests.benchmarks.cells import Cells
from tests.benchmarks.comparison import as_json, compare, table
from tests.benchmarks.merge_cost import Cost, measure


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


def adapt(arguments: argparse.Namespace) -> None:
    """Measure steps of merges that lower entropy; each kind in a process of its own."""
    print(f"{'8 tasks of 4':24} {'CPU s/step':>10} {'x naive':>8} {'own GB':>8} {'x naive':>8}")
    floor, found = alignment_step("plain", arguments.size, 8, 4, arguments.steps, ADAPTATION)
    print(f"{'plain':24} {found['seconds']:10.3f} {'':8} {floor.own / 1e9:8.2f}", flush=True)
    for kind in ("adamerging", "concrete"):
        steps = (f"{kind}-naive", kind)
        naive, own = (
            alignment_step(one, arguments.size, 8, 4, arguments.steps, ADAPTATION) for one in steps
        )
        for name, (cost, found) in zip(steps, (naive, own), strict=True):
            print(
                f"{name:24} {found['seconds']:10.3f} {found['seconds'] / naive[1]['seconds']:8.2f} "
                f"{cost.own / 1e9:8.2f} {cost.own / naive[0].own:8.2f}",
                flush=True,
            )


ADAPTATION = "tests.benchmarks.adaptation_step"


def alignment_step(
    kind: str,
    size: str,
    tasks: int,
    batch: int,
    steps: int,
    module: str = "tests.benchmarks.align_step",
) -> tuple[Cost, dict[str, float]]:
    """Measure one kind of step."""
    command = [sys.executable, "-m", module, kind, "--size", size]
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
    merge_cost.add_arguments(command)
    command.set_defaults(run=merge_cost.run)
    command = commands.add_parser("headers", help="what it costs to read headers strictly")
    headers.add_arguments(command)
    command.set_defaults(run=headers.run)
    command = commands.add_parser("large", help="what merges of a 70B model need")
    large.add_arguments(command)
    command.set_defaults(run=large.run)
    command = commands.add_parser("align", help="what a step of an alignment costs")
    command.add_argument("--steps", type=int, default=10, help="to measure of each kind")
    command.set_defaults(run=align)
    command = commands.add_parser("features", help="what methods cost that see features alone")
    on_features.add_arguments(command)
    command.set_defaults(run=on_features.run)
    command = commands.add_parser("adapt", help="what a step of AdaMerging and Concrete costs")
    command.add_argument("--size", choices=("vit-b32", "small"), default="vit-b32")
    command.add_argument("--steps", type=int, default=3, help="to measure of each kind")
    command.set_defaults(run=adapt)
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
