"""The commands there are: a file each, and one line each here."""

from typing import Annotated

import typer

from momacli import __version__
from momacli.cli import (
    absorb,
    align,
    compare,
    convert,
    demo,
    evaluate,
    head,
    info,
    merge,
    methods,
    probe,
    task_vector,
    verify,
)

app = typer.Typer(
    rich_markup_mode=None,  # plain help starts in half the time
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("task-vector", epilog=task_vector.EPILOG)(task_vector.task_vector)
app.command("merge", epilog=merge.EPILOG)(merge.merge)
app.command("align", epilog=align.EPILOG)(align.align)
app.command("absorb", epilog=absorb.EPILOG)(absorb.absorb)
app.command("evaluate", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("probe", epilog=probe.EPILOG)(probe.probe)
app.command("head", epilog=head.EPILOG)(head.head)
app.command("convert", epilog=convert.EPILOG)(convert.convert)
app.command("info", epilog=info.EPILOG)(info.info)
app.command("verify", epilog=verify.EPILOG)(verify.verify)
app.command("methods")(methods.methods)
app.command("demo")(demo.demo)


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
