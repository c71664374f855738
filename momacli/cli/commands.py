"""The commands there are: a file each, and one line each here."""

from typing import Annotated

import typer

from momacli import __version__
from momacli.cli.absorb import absorb
from momacli.cli.align import align
from momacli.cli.demo import demo
from momacli.cli.evaluate import evaluate
from momacli.cli.merge import merge
from momacli.cli.methods import methods
from momacli.cli.task_vector import task_vector

app = typer.Typer(
    rich_markup_mode=None,  # plain help starts in half the time
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("task-vector")(task_vector)
app.command("merge")(merge)
app.command("align")(align)
app.command("absorb")(absorb)
app.command("evaluate")(evaluate)
app.command("methods")(methods)
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"moma {__version__}")
        raise typer.Exit


@app.callback()
def moma(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Merge fine-tuned models into one and realign it to every task from unlabeled data."""
