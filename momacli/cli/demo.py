"""`moma demo`: the main job on real handwriting, by the public commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from momacli.errors import MomaError

if TYPE_CHECKING:
    from momacli.cli.console import Table
    from momacli.demo import DemoReport


def demo(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Where to work; made if it is not there.")
    ] = "moma-demo",
    seed: Annotated[int, typer.Option(help="Of the trainings and the order of the samples.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of a table.")
    ] = False,
) -> None:
    """Train experts on handwritten digits, merge and align them, and show what is won back.

    Takes a minute or two on two cores and needs no download. Every command is shown before it
    runs, to be copied.
    """
    from momacli.cli.console import duration, print_json, print_table, say
    from momacli.cli.listening import listening
    from momacli.demo import demo as run_demo

    with listening() as listener:
        report = run_demo(folder, run=_shown_and_run, seed=seed, listener=listener)
    if as_json:
        print_json(report)
        return
    print_table(as_table(report))
    print(
        f"MOMA won back {100 * report.recovered:.0f} % of the accuracy that merging lost, "
        f"with no added parameter."
    )
    print(f"figure: {report.figure}")
    say(f"took {duration(report.seconds)}")


def _shown_and_run(arguments: Sequence[str], folder: Path) -> str:
    """Print a command line, run it in a process of its own, and return its stdout."""
    import os
    import shlex
    import subprocess

    from momacli.cli.console import say
    from momacli.demo import interpreter

    one_thread = {"OMP_NUM_THREADS": "1"}  # faster for models this small, most of all when shared
    say(f"$ (cd {shlex.quote(str(folder))} && moma {shlex.join(arguments)})")
    done = subprocess.run(
        [*interpreter(), *arguments],
        cwd=folder,
        env=one_thread | os.environ,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MomaError(f"moma {arguments[0]} failed with status {done.returncode}")
    return done.stdout


def as_table(report: "DemoReport") -> "Table":
    """One row a task, one column a model, in percent."""
    from momacli.cli.console import Table

    columns = list(report.accuracies)
    rows = [
        (task, *(f"{100 * report.accuracies[column][number]:.1f}" for column in columns))
        for number, task in enumerate(report.tasks)
    ]
    average = [f"{100 * report.average(column):.1f}" for column in columns]
    return Table(("task", *columns), [*rows, ("average", *average)])
