"""`moma align`: realign a merged model to every task's head from unlabeled data."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from momacli.cli.assignments import options_of
from momacli.cli.options import (
    AsJson,
    Assignments,
    Cache,
    CheckpointEvery,
    Device,
    DryRun,
    Features,
    Force,
    ModelConfig,
    MovedBase,
    Pooling,
    Seed,
    refuse_others,
)
from momacli.cli.reading import (
    MaxLength,
    MaxSamples,
    Sample,
    Strict,
    TextColumn,
    UnlabeledData,
    reading_from,
)
from momacli.errors import UsageError

if TYPE_CHECKING:
    from momacli.alignment.settings import Settings

EPILOG = "Example: moma align --data unlabeled/ --device cuda"


def align(
    context: typer.Context,
    data: UnlabeledData,
    merged: Annotated[
        str | None,
        typer.Argument(
            metavar="[MERGED]",
            help="What `moma merge` wrote; default merged/ or merged.safetensors.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="moma (default), aligned-c, surgery, probsurgery or surgery-v2; the last three "
            "add parameters, in a file beside the model. `moma methods METHOD` explains one.",
        ),
    ] = "moma",
    device: Device = "auto",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="moma|paper",
            help="moma: exactly orthogonal, a mask with headroom (default). paper: soft "
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
            help="orthogonal (default), similarity, scaling or linear, in closed form; linear wins "
            "more where heads do not normalise. penalty is the paper's soft constraint.",
        ),
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            help="Of how many more samples along each axis it counts that features stay as they "
            "are; default 30. Keeps few samples from changing what they do not show."
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(metavar="both|logits|features", help="What has to agree; default both."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the mask, default 300; of the other methods for each task, as published."
        ),
    ] = None,
    early_stop: Annotated[
        bool,
        typer.Option(
            "--early-stop",
            help="Hold a tenth of the samples back, and stop when the objective on them no longer "
            "falls; --steps is then the most there are.",
        ),
    ] = False,
    views: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Views of each image: itself and random crops; default auto, up to 10 where a "
            "task has fewer than 300 images. As in the paper with --recipe paper: 1.",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Samples of each task a step; default 16, the paper's. auto: as many of them as "
            "fit into memory.",
        ),
    ] = None,
    assignments: Assignments = None,
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
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|float32|bfloat16",
            help="What the encoder computes the steps in; auto is bfloat16 on a GPU, and on a "
            "processor with AMX for a million parameters or more. What is learned, and all "
            "results, are float32.",
        ),
    ] = None,
    seed: Seed = 0,
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
    cache: Cache = None,
    cache_dtype: Annotated[
        str,
        typer.Option(
            metavar="float32|float16",
            help="How they are kept; float16 takes half the room, and rounds them.",
        ),
    ] = "float32",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--prepare",
            metavar="TASK|all",
            help="Compute and keep the fine-tuned features of this task, and no more: a later run "
            "finds them. Needs no other task's expert or samples; repeatable.",
        ),
    ] = None,
    max_samples: MaxSamples = None,
    sample: Sample = None,
    text_column: TextColumn = None,
    max_length: MaxLength = None,
    strict: Strict = False,
    checkpoint_every: CheckpointEvery = 100,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Realign a merged model to its experts' heads from unlabeled data, at its original size.

    Learns a mask on the multi-task vector and an orthogonal matrix per task, and folds both
    into the weights; or does what another method says. Prints the path of the output.
    """
    from momacli.align import align as align_model
    from momacli.alignment.catalog import MOMA, known_method
    from momacli.cli.align_prepare import prepare_features
    from momacli.cli.align_summary import summary_lines
    from momacli.cli.console import is_follower, print_json, print_path, say
    from momacli.cli.listening import listening

    sources: dict[str, Any] = {
        "data": data,
        "reading": reading_from(
            max_samples,
            sample,
            seed=seed,
            text_column=text_column,
            label_column=None,
            max_length=max_length,
            strict=strict,
        ),
        "device": device,
        "base": base,
        "config": config,
        "pooling": pooling,
        "features": features,
        "cache": cache,
        "cache_dtype": _cache_dtype(cache_dtype),
    }
    if only:
        refuse_others(
            context,
            "--prepare keeps features and learns nothing",
            [*sources, *_OF_READING, "views", "merged", "only", "as_json"],
            hint="give the other options to the later run; of samples they have to be the same",
        )
        seen = {} if views is None else {"views": _count_or_auto("--views", views)}
        prepare_features(merged, only, sources | seen, as_json=as_json)
        return
    given = {
        "mask": mask,
        "transform": transform,
        "prior": prior,
        "objective": objective,
        "steps": steps,
        "views": _count_or_auto("--views", views),
        "batch_size": _count_or_auto("--batch-size", batch_size),
        "mask_rate": mask_rate,
        "headroom": headroom,
        "sparsity": sparsity,
        "alpha": alpha,
        "early_stop": early_stop or None,
        "precision": precision,
        "seed": seed,
    }
    method = known_method(method)
    is_moma = method == MOMA
    options = None if is_moma else _options(method, recipe, given, assignments or [])
    with listening() as listener:
        report = align_model(
            merged,
            **sources,
            method=method,
            settings=_settings(recipe, given, assignments or []) if is_moma else None,
            options=options,
            output=output,
            checkpoint_every=checkpoint_every,
            force=force,
            dry_run=dry_run,
            listener=listener,
        )
    if is_follower():
        return
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


_OF_READING = ("max_samples", "sample", "text_column", "max_length", "strict", "seed")


def _cache_dtype(given: str) -> str:
    """What --cache-dtype says. Raises UsageError."""
    if given not in ("float32", "float16"):
        raise UsageError(f"--cache-dtype: expected float32 or float16, found {given}")
    return given


def _count_or_auto(flag: str, given: str | None) -> int | str | None:
    """What a flag says. Raises UsageError."""
    if given is None or given == "auto":
        return given
    try:
        return int(given)
    except ValueError as error:
        raise UsageError(f"{flag}: expected a number or auto, found {given}") from error


def _settings(
    recipe: str | None, given: Mapping[str, Any], assignments: Sequence[str]
) -> "Settings":
    """The recipe's settings with those replaced that were given."""
    from dataclasses import replace

    from momacli.alignment.settings import Settings, paper

    if recipe not in (None, "moma", "paper"):
        raise UsageError(f"--recipe: expected moma or paper, found {recipe}")
    if assignments:
        raise UsageError(
            "--set is for methods other than moma", hint="its options are flags: moma align --help"
        )
    start = paper(Settings()) if recipe == "paper" else Settings()
    return replace(start, **{key: value for key, value in given.items() if value is not None})


def _options(
    method: str, recipe: str | None, given: Mapping[str, Any], assignments: Sequence[str]
) -> dict[str, Any]:
    """The options of a method other than moma, from --set and from flags that it shares."""
    of_moma = {"recipe": recipe} | {
        key: value for key, value in given.items() if key not in ("steps", "batch_size", "seed")
    }
    wrong = [f"--{key.replace('_', '-')}" for key, value in of_moma.items() if value is not None]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)}: not for method {method}",
            hint=f"its options: moma methods {method}",
        )
    return options_of(
        list(assignments), **{key: given[key] for key in ("steps", "batch_size", "seed")}
    )
