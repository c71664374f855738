"""`moma verify`: whether an output is what its recipe makes of its inputs."""

from typing import Annotated

import typer

EPILOG = "Example: moma verify merged.safetensors"


def verify(
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", help="A file or folder that moma merge, align or absorb wrote."
        ),
    ],
    alignment: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The alignment of an aligned model, where it is not beside it.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of a line.")
    ] = False,
) -> None:
    """Make an output again from its recorded inputs, and compare every bit; writes nothing.

    Prints "equal", or the first tensor or file that differs and exits with 1. Inputs are hashed
    from the first byte to the last; one that has changed is an error that names it.
    """
    from momacli.cli.console import duration, names, plain, print_json, say
    from momacli.cli.listening import listening
    from momacli.verify import verify as derive_again

    with listening() as listener:
        report = derive_again(output, alignment=alignment, listener=listener)
    if as_json:
        print_json(report)
    else:
        print("equal" if report.equal else plain(f"differs: {report.first_difference}"))
    if report.equal:
        step = "its last step" if report.command == "align" else "the merge"
        say(f"made {step} again: {report.tensors} tensors in {duration(report.seconds)}")
        if report.others:
            say(f"note: not of its recipe: {names(report.others)}")
    else:
        raise typer.Exit(1)
