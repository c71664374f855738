"""The options of all commands that read samples."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from momacli.data.reading import Reading

LabeledData = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="FOLDER|TASK=PATH",
        help="Labeled samples: images as FOLDER/TASK/CLASS/*, texts as FOLDER/TASK.jsonl or "
        ".csv with a column of classes, by name or number; repeatable.",
    ),
]
_UNLABELED = typer.Option(
    metavar="FOLDER|TASK=PATH",
    help="Unlabeled samples: a sub-folder or text file per task; repeatable.",
)
UnlabeledData = Annotated[list[str], _UNLABELED]
SomeUnlabeledData = Annotated[list[str] | None, _UNLABELED]
MaxSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use at most N samples of each task, chosen by the seed."),
]
Sample = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="Use a share of each task's samples, such as 10%."),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the text; NAME,NAME for pairs; a number in files without a header.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the class, by name or number; default label."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(metavar="N", help="Cut texts to N tokens; default what the model takes."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first image that cannot be read.")
]


def reading_from(
    max_samples: int | None,
    sample: str | None,
    *,
    seed: int,
    text_column: str | None,
    label_column: str | None,
    max_length: int | None,
    strict: bool,
) -> "Reading":
    """What the options say. Raises UsageError."""
    from momacli.data.reading import Reading
    from momacli.data.sampling import Sampling, parse_share
    from momacli.data.tables import Columns

    share = None if sample is None else parse_share(sample)
    return Reading(
        Sampling(max_samples, share, seed),
        Columns(text_column, label_column),
        max_length,
        strict,
    )
