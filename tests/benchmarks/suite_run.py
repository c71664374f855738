"""A run of one suite, from its data to its table and JSON."""

import argparse
import importlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from momacli.alignment.settings import Settings
from momacli.cli.compare import print_table
from momacli.cli.listening import listening
from momacli.comparing.plan import Sweeps
from momacli.comparing.specs import read_specs
from momacli.merge import merge
from tests.benchmarks import choices
from tests.benchmarks.cells import Cells
from tests.benchmarks.comparison import (
    Chosen,
    Plan,
    Setting,
    Suite,
    choose,
    compare_on,
    trained_together,
)
from tests.benchmarks.machine import called, circumstances
from tests.benchmarks.results import Rows, as_json, results_table, sweep_tables

_PLACES = 2  # the rows of the base and of the experts come first


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
    """Print the table of a suite and write OUT/SUITE.json; or what its `--choices` are worth."""
    module, cells = suite_named(arguments.suite), Cells(arguments.out / "cells")
    sweeps = Sweeps(arguments.masking_rates, arguments.data_ratios)
    chosen, runs = None, []
    with listening() as listener:
        for seed in arguments.seeds:
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
            if arguments.choices:
                _measure_choices(suite, plan, seed, arguments)
                continue
            methods = arguments.methods or plan.methods
            own = Sweeps() if runs else sweeps
            runs.append(_rows(suite, plan, methods, setting, own, arguments.together))
    if arguments.choices:
        return
    tasks = sorted(suite.experts)
    for table in [results_table(runs, tasks), *sweep_tables(runs, tasks)]:
        print_table(table)
        print()
    name = f"{suite.name}-transductive" if arguments.transductive else suite.name
    content = {
        "suite": suite.name,
        **circumstances(called(suite.name, arguments, leave_out=("suite",))),
        "about": dict(suite.about),
        "plan": asdict(plan),
        "tasks": tasks,
        "seeds": arguments.seeds,
        "runs": [as_json(run) for run in runs],
    }
    target = arguments.out / f"{name}.json"
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {target}")


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
    methods: list[str],
    setting: Setting,
    sweeps: Sweeps,
    together: bool,
) -> Rows:
    """The rows of one seed."""
    rows = list(compare_on(suite, methods, setting).rows)
    if together:
        rows.insert(_PLACES, trained_together(suite, setting.listener))
    if not (sweeps.data_ratios or sweeps.masking_rates):
        return Rows(rows)
    swept = compare_on(suite, plan.swept, setting, sweeps)
    return Rows(rows, swept.masking, swept.ratios)
