"""Options that several commands have, each in one wording."""

from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON instead of the output's path.")
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", help="auto takes a GPU where there is one.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that moma did not write.")]
ModelConfig = Annotated[
    str | None, typer.Option(metavar="FILE", help="A config.json for a model that has none.")
]
MovedBase = Annotated[
    str | None,
    typer.Option(metavar="CKPT", help="The base, if it is not where the merge found it."),
]
