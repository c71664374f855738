"""Options that several commands have, each in one wording."""

from collections.abc import Sequence
from typing import Annotated

import typer

from momacli.errors import UsageError

Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="Any option of the method, as `moma methods METHOD` lists them; repeatable.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON instead of the output's path.")
]
Base = Annotated[
    str | None,
    typer.Option(metavar="CKPT", help="The model that the experts were fine-tuned from."),
]
CheckpointEvery = Annotated[
    int,
    typer.Option(
        help="Steps after which the state is kept beside the output; the same command goes on from "
        "it after a stop. 0: only on Ctrl-C."
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Features are kept here; ~/.cache/moma."),
]
Compared = Annotated[
    list[str] | None,
    typer.Option("--compare", metavar="MODEL", help="Another model to show beside; repeatable."),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU where there is one.")
]
EvaluatedIn = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="What the encoder computes in; auto is bfloat16 on a GPU, and on a processor with "
        "AMX for a million parameters or more. Heads compute in float32.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check all inputs and say what would be done; nothing is written."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that moma did not write.")]
Heads = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB|MODULE",
        help="Tensors of the classifier heads, or the module that holds them; needed only where "
        "neither config.json nor a merge tells. Repeatable.",
    ),
]
ModelConfig = Annotated[
    str | None, typer.Option(metavar="FILE", help="A config.json for a model that has none.")
]
Pooling = Annotated[
    str | None,
    typer.Option(
        metavar="cls|pooler|mean|masked-mean",
        help="What makes one feature vector of an encoder's output; default what the checkpoint "
        "says. mean counts padding, to --max-length, and gives no attention mask.",
    ),
]
Features = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE",
        help="Module of the network, by dots, whose output are the features; for architectures "
        "that moma does not know.",
    ),
]
MovedBase = Annotated[
    str | None,
    typer.Option(metavar="CKPT", help="The base, if it is not where the merge found it."),
]
Seed = Annotated[
    int,
    typer.Option(help="Of all that is random: numbers, the choice of samples, and their order."),
]


def refuse_others(
    context: typer.Context, reason: str, allowed: Sequence[str], *, hint: str
) -> None:
    """Raise UsageError where the command line has parameters that are not allowed."""
    given = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in allowed:
            given.append(parameter)
    if given:
        names = ", ".join(
            item.opts[0] if item.opts[0].startswith("-") else "checkpoints" for item in given
        )
        raise UsageError(f"{reason}: {names} cannot be given beside it", hint=hint)
