"""A run of one suite, from its data to its table and JSON."""

import argparse
import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from momacli.alignment.settings import Settings
from momacli.cli.compare import print_table
from momacli.cli.listening import listening
from momacli.comparing.plan import Sweeps
from momacli.comparing.rows import Row
from momacli.comparing.specs import read_specs
from momacli.comparing.table import NOT_COMPARED
from momacli.merge import merge
from tests.benchmarks import choices
from tests.benchmarks.cells import Cells
from tests.benchmarks.comparison import (
    TOGETHER,
    Chosen,
    Plan,
    Setting,
    Suite,
    choose,
    compare_on,
    trained_together,
)
from tests.benchmarks.earlier import Earlier
from tests.benchmarks.machine import called, circumstances
from tests.benchmarks.results import Rows, as_json, results_table, sweep_tables


def suite_named(name: str) -> ModuleType:
    """The module of a suite."""
    return importlib.import_module(f"tests.benchmarks.suites.{name}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of every suite."""
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--methods", nargs="+", help="rows, instead of all of the suite")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of as many runs")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="lambda and density on the validation split of the first seed",
    )
    parser.add_argument(
        "--together", action="store_true", help="a row of one encoder trained on all tasks"
    )
    parser.add_argument(
        "--own-length",
        action="store_true",
        help="a row with moma's own number of steps and batch size, too",
    )
    parser.add_argument(
        "--earlier",
        type=Path,
        nargs="+",
        default=[],
        help="folders of results, such as tests/benchmarks/results, made by the same code: their "
        "choice of lambda and density and their rows are taken over, those of the first that has "
        "a seed",
    )
    sweep = "repeats an alignment, with the first seed"
    parser.add_argument("--data-ratios", type=float, nargs="+", default=[], help=sweep)
    parser.add_argument("--masking-rates", type=float, nargs="+", default=[], help=sweep)
    parser.add_argument(
        "--choices",
        nargs="+",
        help="no rows, but other alignments of task arithmetic: all, or names of `choices`",
    )
    parser.add_argument("--samples", type=int, nargs="+", help="of each task, for --choices")
    choices.add_start(parser)
    parser.add_argument(
        "--transductive", action="store_true", help="adapt to the samples that are evaluated"
    )


def run_suite(arguments: argparse.Namespace) -> None:
    """Print the table of a suite and write OUT/SUITE.json; or what its `--choices` are worth.

    The file is written after every seed.
    """
    module, cells = suite_named(arguments.suite), Cells(arguments.out / "cells")
    name = f"{arguments.suite}-transductive" if arguments.transductive else arguments.suite
    earlier = Earlier.of([folder / f"{name}.json" for folder in arguments.earlier])
    chosen, runs = earlier.chosen, list[Rows]()
    with listening() as listener:
        for number, seed in enumerate(arguments.seeds):
            suite = module.prepare(arguments, seed, cells)
            setting = Setting(arguments.out, seed, arguments.transductive, listener)
            if chosen is None:
                chosen = choose(suite, setting) if arguments.choose else Chosen()
            plan = Plan(
                arguments.align_steps,
                arguments.align_batch_size,
                chosen,
                arguments.own_length,
                linear=not suite.normalises,
            )
            earlier.check(suite.about, asdict(plan))
            if arguments.choices:
                _measure_choices(suite, plan, seed, arguments)
                continue
            runs.append(_rows(suite, plan, setting, arguments, earlier.rows(seed), number == 0))
            _write(arguments, name, suite, plan, runs)
    if runs:
        tasks = sorted(suite.experts)
        for table in [results_table(runs, tasks), *sweep_tables(runs, tasks)]:
            print_table(table)
            print()
        print(f"written: {arguments.out / name}.json")


def _write(
    arguments: argparse.Namespace, name: str, suite: Suite, plan: Plan, runs: Sequence[Rows]
) -> None:
    """What was measured until now, as whole as a run of these seeds alone would leave it."""
    seeds = arguments.seeds[: len(runs)]
    asked = argparse.Namespace(**{**vars(arguments), "seeds": seeds})
    content = {
        "suite": suite.name,
        **circumstances(called(suite.name, asked, leave_out=("suite", "earlier"))),
        "about": dict(suite.about),
        "plan": asdict(plan),
        "tasks": sorted(suite.experts),
        "seeds": seeds,
        "runs": [as_json(run) for run in runs],
    }
    text = json.dumps(content, indent=1) + "\n"
    (arguments.out / f"{name}.json").write_text(text, encoding="utf-8")


def _measure_choices(suite: Suite, plan: Plan, seed: int, arguments: argparse.Namespace) -> None:
    """Other alignments of task arithmetic than the default, as `choices` has them."""
    (step,) = read_specs([plan.chosen.task_arithmetic])[0]
    for samples in arguments.samples or [None]:
        print(f"\nseed {seed}, samples of each task: {samples or 'all'}")
        with tempfile.TemporaryDirectory() as folder:
            merged = Path(folder) / "merged"
            merge(
                list(suite.experts.values()),
                base=suite.base,
                method=step.merge.name,
                options=step.merge.own_options,
                scope=step.merge.scope,
                output=merged,
            )
            place = choices.Place(merged, suite.unlabeled(transductive=False), suite.labeled)
            plain = Settings(
                views=1,
                steps=plan.steps,
                batch_size=plan.batch_size,
                seed=seed,
                start=arguments.start,
            )
            only = None if arguments.choices == ["all"] else arguments.choices
            choices.measure(place, plain, only, samples)


def _rows(
    suite: Suite,
    plan: Plan,
    setting: Setting,
    arguments: argparse.Namespace,
    earlier: Rows,
    first: bool,
) -> Rows:
    """The rows of one seed, and of the first the sweeps; what is known of it is not made again."""
    known = {row.name: row for row in earlier.rows if row.error is None}
    methods = [str(spec) for spec in read_specs(arguments.methods or plan.methods)[0]]
    if missing := [method for method in methods if method not in known]:
        known |= {row.name: row for row in compare_on(suite, missing, setting).rows}
    names = [*NOT_COMPARED, *methods]
    if arguments.together:
        names.insert(len(NOT_COMPARED), TOGETHER)
        if TOGETHER not in known:
            known[TOGETHER] = trained_together(suite, setting.listener)
    rows = [known[name] for name in names]
    if not first:
        return Rows(rows)
    sweeps = Sweeps(
        [] if _has(earlier.masking, arguments.masking_rates) else arguments.masking_rates,
        [] if _has(earlier.ratios, arguments.data_ratios) else arguments.data_ratios,
    )
    if not (sweeps.data_ratios or sweeps.masking_rates):
        return Rows(rows, earlier.masking, earlier.ratios)
    swept = compare_on(suite, plan.swept, setting, sweeps)
    return Rows(rows, swept.masking or earlier.masking, swept.ratios or earlier.ratios)


def _has(swept: Sequence[Row], wanted: Sequence[float]) -> bool:
    """Whether all that is wanted of a sweep was made."""
    made = {share for row in swept for share in (row.masking_rate, row.data_ratio)}
    return set(wanted) <= made
