"""`moma compare`: several methods on the same experts and samples, as a table."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from momacli.cli.options import (
    Base,
    Cache,
    Device,
    DryRun,
    EvaluatedIn,
    Features,
    Heads,
    ModelConfig,
    Pooling,
    Seed,
)
from momacli.cli.reading import (
    LabelColumn,
    MaxLength,
    MaxSamples,
    SomeUnlabeledData,
    Strict,
    TextColumn,
    reading_from,
)
from momacli.errors import MomaError, UsageError

if TYPE_CHECKING:
    from momacli.comparing.report import CompareReport
    from momacli.comparing.rows import Row
    from momacli.comparing.table import Table

EPILOG = (
    "Example: moma compare experts/* --base base/ --data unlabeled/ --eval labeled/ "
    "--methods average,ties:density=0.1+moma"
)


def compare(
    experts: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT...",
            help="The experts, as `moma merge` takes them.",
            show_default=False,
        ),
    ],
    evaluation: Annotated[
        list[str],
        typer.Option(
            "--eval",
            metavar="FOLDER|TASK=PATH",
            help="Labeled samples, as `moma evaluate` takes them; repeatable.",
        ),
    ],
    base: Base = None,
    data: SomeUnlabeledData = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="all|paper|LIST",
            help="Rows, joined by commas: a merge method, and perhaps + and an alignment of its "
            "result (surgery, probsurgery, surgery-v2, aligned-c, orthogonal, linear, moma, or "
            "paper for moma as published); options behind colons. paper alone (default): the rows "
            "of its Table 2. all: every method with its defaults. Repeatable.",
        ),
    ] = None,
    masking_rates: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Repeat alignments with these shares of the mask set to 0, such as 10%,50%,90%.",
        ),
    ] = None,
    data_ratios: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Repeat alignments with these shares of the unlabeled samples, such as "
            "1%,10%,50%,100%.",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Finished rows are kept here, in rows.json; the same command goes on from them.",
        ),
    ] = "comparison",
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models", help="Keep every model in models/, instead of removing it at once."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print all rows as comma-separated values.")
    ] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="Print tables in LaTeX, for the package booktabs.")
    ] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print tables in Markdown.")
    ] = False,
    device: Device = "auto",
    eval_precision: EvaluatedIn = "float32",
    seed: Seed = 0,
    max_samples: MaxSamples = None,
    max_eval_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Evaluate on at most N samples of each task.")
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    strict: Strict = False,
    config: ModelConfig = None,
    heads: Heads = None,
    pooling: Pooling = None,
    features: Features = None,
    cache: Cache = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that holds other things.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Compare methods on the same experts and samples: accuracy by task, and what each takes.

    Prints the table of the paper, best numbers bold, with added parameters (bits that tell tasks
    apart count by 32), seconds to merge and align, and peak memory, each of a process of its own.
    A method that fails is a row that says so; the exit status is 1 then.
    """
    from momacli.cli.listening import listening
    from momacli.compare import Options
    from momacli.compare import compare as compare_methods
    from momacli.comparing.plan import Sweeps

    formats = {"--json": as_json, "--csv": as_csv, "--latex": as_latex, "--markdown": as_markdown}
    chosen = [flag for flag, wanted in formats.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    reading = reading_from(
        max_samples,
        None,
        seed=seed,
        text_column=text_column,
        label_column=label_column,
        max_length=max_length,
        strict=strict,
    )
    options = Options(
        reading=reading,
        evaluated=max_eval_samples,
        seed=seed,
        device=device,
        precision=eval_precision,
        config=config,
        heads=tuple(heads or ()),
        pooling=pooling,
        features=features,
        cache=cache,
    )
    with listening() as listener:
        report = compare_methods(
            experts,
            base=base,
            data=data,
            evaluation=evaluation,
            methods=methods or ["paper"],
            sweeps=Sweeps(_shares(masking_rates), _shares(data_ratios)),
            output=output,
            options=options,
            keep_models=keep_models,
            force=force,
            dry_run=dry_run,
            listener=listener,
        )
    _print(report, chosen[0] if chosen else "")
    if report.failed:
        raise MomaError(
            f"{len(report.failed)} of {len(report.every)} rows failed",
            details=[f"{row.name}: {row.error}" for row in report.failed],
            hint="the same command tries them again, and keeps the others",
        )


def _shares(text: str | None) -> list[float]:
    """Read "1%,0.5"."""
    from momacli.data.sampling import parse_share

    words = [word.strip() for word in (text or "").split(",")]
    return [parse_share(word) for word in words if word]


def _print(report: "CompareReport", form: str) -> None:
    from momacli.cli.console import duration, print_json, say
    from momacli.comparing.latex import as_latex
    from momacli.comparing.markdown import as_markdown
    from momacli.comparing.separated import as_csv

    if report.dry_run and not form:
        print("\n".join(f"would compare {_said(row)}" for row in report.every))
        return
    if form == "--json":
        print_json(report)
    elif form == "--csv":
        print(as_csv(report.every, report.tasks), end="")
    elif form:
        write = as_latex if form == "--latex" else as_markdown
        print("\n".join(write(table) for table in tables(report)), end="")
    else:
        for number, table in enumerate(tables(report)):
            if number:
                print()
            print_table(table)
    for figure in report.figures:
        say(f"figure: {figure}")
    say(f"compared {len(report.every)} rows in {duration(report.seconds)}, kept in {report.output}")


def _said(row: "Row") -> str:
    if row.masking_rate is not None:
        return f"{row.name} ({100 * row.masking_rate:g}% of the mask set to 0)"
    if row.data_ratio is not None:
        return f"{row.name} ({100 * row.data_ratio:g}% of the samples)"
    return row.name


def tables(report: "CompareReport") -> "list[Table]":
    """The main table, and one of each sweep."""
    from momacli.comparing.table import main_table, sweep_table

    found = [main_table(report.rows, report.tasks)]
    if report.masking:
        found.append(sweep_table("Masked", report.masking, report.tasks))
    if report.ratios:
        found.append(sweep_table("Ratio", report.ratios, report.tasks))
    return found


def print_table(table: "Table") -> None:
    """With the best in bold on a terminal; aligned with spaces elsewhere."""
    from momacli.cli.console import Table as PlainTable
    from momacli.cli.console import aligned, is_terminal

    if is_terminal(sys.stdout):
        _print_bold(table)
        return
    rows = [
        [("  " if line.indented else "") + line.label, *(cell.text for cell in line.cells)]
        for line in table.lines
    ]
    print("\n".join(aligned(PlainTable(table.header, rows))))


def _print_bold(table: "Table") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from momacli.cli.console import plain

    ruled = RichTable(box=box.SIMPLE_HEAD)
    for number, title in enumerate(table.header):
        ruled.add_column(Text(plain(title)), justify="right" if number else "left")
    for line in table.lines:
        label = Text(("  " if line.indented else "") + plain(line.label))
        cells = [Text(plain(cell.text), style="bold" if cell.best else "") for cell in line.cells]
        ruled.add_row(label, *cells)
    Console().print(ruled)
