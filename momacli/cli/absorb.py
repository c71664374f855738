"""`moma absorb`: fold an alignment into the weights of a merged model."""

from typing import TYPE_CHECKING, Annotated

import typer

from momacli.cli.options import AsJson, Force, MovedBase

if TYPE_CHECKING:
    from momacli.alignment.folding import AbsorbReport

EPILOG = "Example: moma absorb merged/ aligned/alignment.safetensors -o aligned/"


def absorb(
    merged: Annotated[
        str,
        typer.Argument(metavar="MERGED", help="The merged model the alignment was made for."),
    ],
    alignment: Annotated[
        str, typer.Argument(metavar="ALIGNMENT", help="What `moma align` wrote beside its output.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Default aligned.safetensors, or aligned/ with one loadable folder per task.",
        ),
    ] = None,
    base: MovedBase = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fold mask and transforms into the weights, without adding a parameter.

    Prints the path of the output; `moma align` ends with the same step.
    """
    from momacli.absorb import absorb as absorb_alignment
    from momacli.cli.console import print_json, print_path, say
    from momacli.cli.listening import listening

    with listening() as listener:
        report = absorb_alignment(
            merged, alignment, output=output, base=base, force=force, listener=listener
        )
    for line in summary_lines(report):
        say(line)
    if as_json:
        print_json(report)
    else:
        print_path(report.output)


def summary_lines(report: "AbsorbReport") -> list[str]:
    """What was folded, for people."""
    from momacli.cli.console import duration

    what = f"{len(report.tasks)} transforms and masks of {report.masked_tensors} tensors"
    lines = [f"absorbed {f'{report.heads} trained heads' if report.heads else what}"]
    for task, after in report.parameters_after.items():
        before = report.parameters_before[task]
        lines.append(f"  {task}  {after} parameters, {after - before:+d} against the merged model")
    lines.append(f"  wrote {report.output} in {duration(report.seconds)}")
    return lines
