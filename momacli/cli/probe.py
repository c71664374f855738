"""`moma probe`: what a merged model's features still hold, and which map would bring it back."""

from typing import TYPE_CHECKING, Annotated

import typer

from momacli.cli.options import (
    Cache,
    Compared,
    Device,
    DryRun,
    Features,
    Force,
    ModelConfig,
    MovedBase,
    Pooling,
    Seed,
)
from momacli.cli.reading import (
    LabelColumn,
    LabeledData,
    MaxLength,
    MaxSamples,
    Sample,
    Strict,
    TextColumn,
    reading_from,
)

if TYPE_CHECKING:
    from momacli.cli.console import Table
    from momacli.probe import ProbeReport
    from momacli.probing.settings import Settings

EPILOG = "Example: moma probe merged/ --data labeled/ -o report/"


def probe(
    data: LabeledData,
    merged: Annotated[
        str | None,
        typer.Argument(
            metavar="[MERGED]",
            help="What `moma merge` or `moma align` wrote; default merged/ or merged.safetensors.",
            show_default=False,
        ),
    ] = None,
    compare: Compared = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write a report here: one page that opens from disk (index.html), figures as PNG "
            "and SVG, tables as CSV. Without it, numbers are printed and t-SNE is left out.",
        ),
    ] = None,
    shots: Annotated[
        str,
        typer.Option(
            metavar="N,N%,...",
            help="Labeled samples of each class for kNN and Aligned-C, in numbers or shares.",
        ),
    ] = "1,5,20",
    draws: Annotated[
        int, typer.Option(help="Choices of these samples; accuracies are averaged over them.")
    ] = 5,
    fit: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Share of each class's samples to fit on; all is evaluated on the others.",
        ),
    ] = "50%",
    transductive: Annotated[
        bool,
        typer.Option(
            "--transductive",
            help="Fit transforms on the samples they are evaluated on, as the paper does.",
        ),
    ] = False,
    points: Annotated[
        int, typer.Option(metavar="N", help="Samples of each task in the t-SNE figures; 0: none.")
    ] = 200,
    device: Device = "auto",
    base: MovedBase = None,
    config: ModelConfig = None,
    pooling: Pooling = None,
    features: Features = None,
    cache: Cache = None,
    max_samples: MaxSamples = None,
    sample: Sample = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    strict: Strict = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as JSON instead of tables.")
    ] = False,
) -> None:
    """Say why a merge lost accuracy, from the features of labeled samples.

    Judges the merged features by their neighbours and by newly trained heads, and fits maps
    from them to the fine-tuned ones, from scaling to affine. Nothing is evaluated on samples
    that were fitted on, unless --transductive asks for it.
    """
    from momacli.cli.console import duration, print_json, print_table, say
    from momacli.cli.listening import listening
    from momacli.probe import probe as probe_model

    settings = _settings(shots, fit, transductive, draws, points, seed)
    with listening() as listener:
        report = probe_model(
            merged,
            data=data,
            compared=compare or [],
            settings=settings,
            reading=reading_from(
                max_samples,
                sample,
                seed=seed,
                text_column=text_column,
                label_column=label_column,
                max_length=max_length,
                strict=strict,
            ),
            output=output,
            device=device,
            base=base,
            config=config,
            pooling=pooling,
            features=features,
            cache=cache,
            force=force,
            dry_run=dry_run,
            listener=listener,
        )
    if as_json:
        print_json(report)
    elif dry_run:
        print("\n".join(_plan(report)))
    else:
        print_table(_accuracies(report))
        print()
        print_table(_geometry(report))
    if report.page is not None and not dry_run:
        say(f"wrote {report.page} in {duration(report.seconds)}")


def _settings(
    shots: str, fit: str, transductive: bool, draws: int, points: int, seed: int
) -> "Settings":
    from momacli.data.sampling import parse_share
    from momacli.data.shots import parse_shots
    from momacli.probing.settings import Settings

    return Settings(
        shots=parse_shots(shots),
        fit_share=parse_share(fit),
        transductive=transductive,
        draws=draws,
        points=points,
        seed=seed,
    )


def _plan(report: "ProbeReport") -> list[str]:
    from momacli.cli.console import plain

    written = f"the report {report.output}" if report.output is not None else "nothing"
    return [
        f"would probe {plain(str(report.merged))} on {report.device}",
        *(f"  {plain(task)}   {plain(str(path))}" for task, path in report.sources.items()),
        f"  written: {plain(written)}",
    ]


def _accuracies(report: "ProbeReport") -> "Table":
    """A row a method, a column a task, in percent; deviations are in the report and --json."""
    from momacli.cli.console import Table
    from momacli.probing.tables import accuracy_cells, family_rows, few_shot_rows, models_of

    models = models_of(str(report.merged), report.tasks, report.compared)
    rows = few_shot_rows(models)
    own = 1 + (len(rows) - 1) // len(models)
    rows[own:own] = family_rows(report.tasks)  # the maps are those of the first model
    cells = accuracy_cells(rows, deviation=lambda _: "")
    return Table(("accuracy (%)", *report.tasks, "average"), cells)


def _geometry(report: "ProbeReport") -> "Table":
    """How the features lie, raw and mapped, and how far the orthogonal map turns them."""
    from momacli.cli.console import Table
    from momacli.probing.findings import CONDITIONS

    rows = []
    for task, found in report.tasks.items():
        agreement = [found.agreement[name] for name in CONDITIONS]
        cosines = [f"{one.cosine.mean:.2f}" for one in agreement]
        coefficients = [f"{one.coefficient.mean:.2f}" for one in agreement]
        rows.append((task, *cosines, *coefficients, f"{found.closeness['orthogonal'].turn:.0f}°"))
    names = (f"cosine {CONDITIONS[0]}", *CONDITIONS[1:])
    others = (f"coefficient {CONDITIONS[0]}", *CONDITIONS[1:])
    return Table(("mean", *names, *others, "turned by"), rows)
