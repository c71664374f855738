"""`moma evaluate`: accuracy on labeled folders, task by task."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from momacli.cli.options import (
    Compared,
    Device,
    EvaluatedIn,
    Features,
    Heads,
    ModelConfig,
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
    from momacli.evaluate import EvalReport

EPILOG = "Example: moma evaluate aligned/ --compare merged/ --compare experts/ --data labeled/"


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Files or folders of one task or several: a model folder, a folder of experts, "
            "merged/, aligned.safetensors.",
            show_default=False,
        ),
    ],
    data: LabeledData,
    compare: Compared = None,
    config: ModelConfig = None,
    pooling: Pooling = None,
    features: Features = None,
    heads: Heads = None,
    no_adapter: Annotated[
        bool,
        typer.Option(
            "--no-adapter",
            help="Run models that moma align put an adapter behind, as by surgery, without it.",
        ),
    ] = False,
    device: Device = "auto",
    precision: EvaluatedIn = "float32",
    max_samples: MaxSamples = None,
    sample: Sample = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    strict: Strict = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")
    ] = False,
) -> None:
    """Print the accuracy of each task with its 95 % interval, and their macro average.

    The classes are those of each head's own id2label.
    """
    from momacli.cli.console import print_json, print_table
    from momacli.cli.listening import listening
    from momacli.evaluate import evaluate as evaluate_models

    with listening() as listener:
        report = evaluate_models(
            [*models, *(compare or [])],
            data=data,
            config=config,
            pooling=pooling,
            features=features,
            heads=heads or [],
            adapter=not no_adapter,
            device=device,
            precision=precision,
            reading=reading_from(
                max_samples,
                sample,
                seed=seed,
                text_column=text_column,
                label_column=label_column,
                max_length=max_length,
                strict=strict,
            ),
            listener=listener,
        )
    if as_json:
        print_json(as_table_of_numbers(report))
    else:
        print_table(as_table(report))


def as_table(report: "EvalReport") -> "Table":
    """One row a task, one column a model, in percent."""
    from momacli.cli.console import Table

    names = list(report.scores)
    tasks = list(dict.fromkeys(task for scores in report.scores.values() for task in scores))
    rows = []
    for task in tasks:
        cells = []
        for name in names:
            score = report.scores[name].get(task)
            if score is None:
                cells.append("-")
                continue
            low, high = score.interval
            cells.append(f"{100 * score.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        rows.append((task, *cells))
    averages = [f"{100 * report.average(name):.1f}" for name in names]
    return Table(("task", *names), [*rows, ("average", *averages)])


def as_table_of_numbers(report: "EvalReport") -> dict[str, Any]:
    """The same for scripts: accuracies and intervals from 0 to 1."""
    return {
        "models": {
            name: {
                "average": report.average(name),
                "added_parameters": report.added.get(name, 0),
                "tasks": {
                    task: {
                        "accuracy": score.accuracy,
                        "interval": score.interval,
                        "correct": score.correct,
                        "total": score.total,
                    }
                    for task, score in scores.items()
                },
            }
            for name, scores in report.scores.items()
        }
    }
