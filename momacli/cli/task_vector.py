"""`moma task-vector`: what fine-tuning added to a base."""

from typing import TYPE_CHECKING, Annotated

import typer

from momacli.cli.options import Force

if TYPE_CHECKING:
    from momacli.cli.console import Table
    from momacli.task_vector import TaskVectorReport

EPILOG = "Example: moma task-vector base.safetensors mnist.safetensors svhn.safetensors"


def task_vector(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="The model that was fine-tuned: a file or folder.",
            show_default=False,
        ),
    ],
    experts: Annotated[
        list[str],
        typer.Argument(
            metavar="EXPERT",
            help="Its fine-tuned copies: files or folders; NAME=PATH names the task.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A name in .safetensors is the file of a single expert, any other a folder of "
            "TASK.safetensors files. Default task-vectors/.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Type of the differences: float32 (default), bfloat16, float16, float64.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Take no difference of these tensors; repeatable."),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="These tensors are classifier heads, carried along; needed only where "
            "config.json does not tell. Repeatable.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A config.json for inputs that have none beside them."),
    ] = None,
    force: Force = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of tables.")
    ] = False,
) -> None:
    """Subtract a base from each of its fine-tuned copies.

    Prints the norm of each layer's part, the share of exact zeros, and the cosine between each
    two. `moma merge` takes a task vector in place of its expert, together with the base.
    """
    from momacli.cli.console import amount, duration, names, print_json, print_table, say
    from momacli.cli.listening import listening
    from momacli.task_vector import task_vector as subtract

    with listening() as listener:
        report = subtract(
            base,
            experts,
            output=output,
            dtype=dtype,
            exclude=exclude or [],
            heads=heads or [],
            config=config,
            force=force,
            listener=listener,
        )
    if as_json:
        print_json(report)
    else:
        for table in tables(report):
            print_table(table)
            print()
    tensors = f"{report.tensors} tensors ({amount(report.parameters)} parameters) each"
    if report.carried:
        tensors += f", {report.carried} of heads carried along"
    if report.skipped:
        tensors += f", {len(report.skipped)} not subtracted ({names(report.skipped)})"
    say(tensors)
    size, time = amount(report.nbytes, "bytes"), duration(report.seconds)
    say(f"wrote {report.output} ({size}) in {time}")


def tables(report: "TaskVectorReport") -> "list[Table]":
    """Norms by layer, totals, and cosines where there are at least two."""
    from momacli.cli.console import Table, amount

    vectors = report.task_vectors
    tasks = [vector.task for vector in vectors]
    rows = [
        [group.name, amount(group.parameters), *(f"{norm:.4g}" for norm in group.norms)]
        for group in report.groups
    ]
    rows += [
        ["all", amount(report.parameters), *(f"{vector.norm:.4g}" for vector in vectors)],
        ["of the base's norm", "", *(f"{vector.relative_norm:.2%}" for vector in vectors)],
        ["exact zeros", "", *(f"{vector.sparsity:.2%}" for vector in vectors)],
    ]
    found = [Table(["norm", "parameters", *tasks], rows)]
    if len(tasks) > 1:
        cosines = [
            [task, *("-" if value is None else f"{value:.3f}" for value in row)]
            for task, row in zip(tasks, report.cosines, strict=True)
        ]
        found.append(Table(["cosine", *tasks], cosines))
    return found
