"""`moma head`: a zero-shot classifier from the names of its classes."""

from typing import Annotated

import typer

from momacli.cli.options import Force

EPILOG = (
    "Example: moma head --model clip/ --classes eurosat.txt --templates eurosat "
    "-o head_eurosat.safetensors"
)


def head(
    model: Annotated[
        str, typer.Option(metavar="FOLDER", help="A CLIPModel, SiglipModel or open_clip model.")
    ],
    classes: Annotated[
        str, typer.Option(metavar="FILE", help="The names of the classes, one a line.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="head_TASK.safetensors")
    ],
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SET",
            help="Sentences with {} for the name, one a line, or cars, dtd, eurosat, gtsrb, "
            "mnist, resisc45, sun397, svhn; default 'a photo of a {}.'",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Make a zero-shot classifier of CLIP, SigLIP or open_clip from its text encoder.

    Prints the path of the output, for the folder of an expert.
    """
    from momacli.cli.console import print_path, say
    from momacli.cli.listening import listening
    from momacli.head import head as make_head

    with listening() as listener:
        report = make_head(
            model,
            classes=classes,
            output=output,
            templates=templates,
            force=force,
            listener=listener,
        )
    say(f"{len(report.classes)} classes, {len(report.templates)} templates each")
    print_path(report.output)
