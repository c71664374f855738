"""`moma align`: realign a merged model to every task's head from unlabeled data."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from momacli.cli.options import AsJson, Device, Features, Force, ModelConfig, MovedBase, Pooling
from momacli.cli.reading import MaxLength, MaxSamples, Sample, Strict, TextColumn, reading_from
from momacli.errors import UsageError

if TYPE_CHECKING:
    from momacli.alignment.report import AlignReport
    from momacli.alignment.settings import Settings

EPILOG = "Example: moma align --data unlabeled/ --device cuda"


def align(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="FOLDER|TASK=PATH",
            help="Unlabeled samples: a sub-folder or text file per task; repeatable.",
        ),
    ],
    merged: Annotated[
        str | None,
        typer.Argument(
            metavar="[MERGED]",
            help="What `moma merge` wrote; default merged/ or merged.safetensors.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="moma|paper",
            help="moma: exactly orthogonal, logits, a mask with headroom (default). paper: soft "
            "penalty, features, a mask that only shrinks.",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="element|none",
            help="none leaves the encoder as it is and finds the transforms in closed form.",
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY",
            help="orthogonal (default), similarity, scaling or linear, in closed form; penalty is "
            "the paper's soft constraint.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(metavar="logits|features", help="What has to agree with the experts."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the mask; default 300.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of each task a step; default 16, the paper's.")
    ] = None,
    mask_rate: Annotated[
        float | None, typer.Option(help="Learning rate of the mask; default 0.1, the paper's.")
    ] = None,
    headroom: Annotated[
        float | None,
        typer.Option(
            help="How many times its size the mask may let the multi-task vector grow; default: "
            "to the norm of the sum of all task vectors. 1 can only shrink it, as in the paper."
        ),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Weight of sum M^2; default 5e-9, the paper's.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the soft penalty on A^T A - I; default 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and order of the samples.")] = 0,
    base: MovedBase = None,
    config: ModelConfig = None,
    pooling: Pooling = None,
    features: Features = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Default aligned/ with one loadable folder per task, and the alignment itself in "
            "alignment.safetensors; or aligned.safetensors, with the alignment beside it.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Fine-tuned features are kept here; ~/.cache/moma."),
    ] = None,
    max_samples: MaxSamples = None,
    sample: Sample = None,
    text_column: TextColumn = None,
    max_length: MaxLength = None,
    strict: Strict = False,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            help="Steps after which the state is kept beside the output; the same command goes on "
            "from it after a stop. 0: only on Ctrl-C."
        ),
    ] = 100,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all inputs and say what would be done.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Realign a merged model to its experts' heads from unlabeled data, at its original size.

    Learns a mask on the multi-task vector and an orthogonal matrix per task, and folds both
    into the weights. Prints the path of the output.
    """
    from momacli.align import align as align_model
    from momacli.cli.console import print_json, print_path, say
    from momacli.cli.listening import listening

    settings = _settings(
        recipe,
        mask=mask,
        transform=transform,
        objective=objective,
        steps=steps,
        batch_size=batch_size,
        mask_rate=mask_rate,
        headroom=headroom,
        sparsity=sparsity,
        alpha=alpha,
        seed=seed,
    )
    with listening() as listener:
        report = align_model(
            merged,
            data=data,
            settings=settings,
            device=device,
            output=output,
            base=base,
            config=config,
            pooling=pooling,
            features=features,
            cache=cache,
            checkpoint_every=checkpoint_every,
            reading=reading_from(
                max_samples,
                sample,
                seed=seed,
                text_column=text_column,
                label_column=None,
                max_length=max_length,
                strict=strict,
            ),
            force=force,
            dry_run=dry_run,
            listener=listener,
        )
    summary = summary_lines(report)
    if dry_run and not as_json:
        print("\n".join(summary))
        return
    for line in summary:
        say(line)
    if as_json:
        print_json(report)
    else:
        print_path(report.output)


def _settings(recipe: str | None, **given: Any) -> "Settings":
    """The recipe's settings with those replaced that were given."""
    from dataclasses import replace

    from momacli.alignment.settings import Settings, paper

    if recipe not in (None, "moma", "paper"):
        raise UsageError(f"--recipe: expected moma or paper, found {recipe}")
    start = paper(Settings()) if recipe == "paper" else Settings()
    return replace(start, **{key: value for key, value in given.items() if value is not None})


def summary_lines(report: "AlignReport") -> list[str]:
    """What an alignment did, for people."""
    from momacli.cli.console import Table, aligned, amount, duration, names

    settings = report.settings
    learned = "mask and " if settings["mask"] != "none" else ""
    if report.dry_run:
        tasks = names(list(report.parameters), 20)
        return [
            f"would align {len(report.parameters)} tasks: {learned}transforms on {report.device}",
            f"  tasks    {tasks}",
            f"  output   {report.output}",
            f"  beside   {report.alignment}",
        ]
    rows = [
        (
            task,
            str(one.samples),
            f"{one.objective_before:.4g} → {one.objective_after:.4g}",
            f"{one.cosine_before:.3f} → {one.cosine_after:.3f}",
            f"{one.coefficient_before:.3f} → {one.coefficient_after:.3f}",
            f"{one.orthogonality_error:.0e}",
            f"{one.logit_difference:.0e}",
        )
        for task, one in report.tasks.items()
    ]
    header = (
        "task",
        "samples",
        settings["objective"],
        "cosine",
        "coefficient",
        "|AᵀA-I|",
        "Δlogit",
    )
    lines = [f"aligned {len(rows)} tasks: {learned}transforms on {report.device}"]
    if report.steps:
        lines.append(
            f"  mask     {report.steps} steps, headroom {report.headroom:.3g}, "
            f"{report.masked_share:.1%} of the multi-task vector below half"
        )
    lines += [f"  {line}" for line in aligned(Table(header, rows))]
    counts = sorted(set(report.parameters.values()))
    same = " to ".join(amount(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    lines.append(f"  size     {same} parameters a task, as before: none added")
    lines.append(f"  wrote    {report.output} and {report.alignment} in {duration(report.seconds)}")
    return lines
