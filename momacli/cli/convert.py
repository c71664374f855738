"""`moma convert`: pickles as safetensors."""

from typing import Annotated

import typer

from momacli.cli.options import AsJson, Force

EPILOG = "Example: moma convert pytorch_model.bin -o model.safetensors"


def convert(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files written by torch.save or pickle.dump (.pt, .pth, .bin, .pkl), or a "
            "folder: ViT-B-32/ with zeroshot.pt, TASK/finetuned.pt and head_TASK.pt (or the "
            "nonlinear_*.pt of tall_masks), a model's with pytorch_model.bin, or any with pickles.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A name in .safetensors is the file of a single input, any other a folder.",
        ),
    ],
    entry: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Where the model is in a file that holds several, such as ema."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="An open_clip_config.json for a folder of image encoders that is not named "
            "like a model of open_clip.",
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the tensors of pickles as safetensors, without running any code in them.

    Whole pickled modules need none of their classes. Prints the path of the output.
    """
    from momacli.cli.console import amount, duration, plain, print_json, print_path, say
    from momacli.cli.listening import listening
    from momacli.convert import convert as rewrite

    with listening() as listener:
        report = rewrite(
            inputs, output=output, entry=entry, config=config, force=force, listener=listener
        )
    for file in report.files:
        size = f"{file.tensors} tensors, {amount(file.nbytes, 'bytes')}"
        kind = f", a {file.kind}" if file.kind else ""
        say(plain(f"{file.source} -> {file.output}: {size}{kind}"))
    say(f"converted {len(report.files)} in {duration(report.seconds)}")
    if as_json:
        print_json(report)
    else:
        print_path(report.output)
