"""`moma merge`: several fine-tuned models into one, without data or from unlabeled samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from momacli.cli.assignments import options_of, weights_of
from momacli.cli.options import (
    AsJson,
    Assignments,
    Base,
    CheckpointEvery,
    DryRun,
    Features,
    Force,
    Heads,
    Pooling,
    Seed,
    refuse_others,
)
from momacli.cli.reading import (
    MaxLength,
    MaxSamples,
    Sample,
    SomeUnlabeledData,
    Strict,
    TextColumn,
    reading_from,
)
from momacli.errors import UsageError

if TYPE_CHECKING:
    from momacli.merging.report import MergeReport

EPILOG = "Example: moma merge ckpts/*.safetensors --method ties --density 0.2"


def merge(
    context: typer.Context,
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CKPT",
            help="Safetensors files, model folders or task vectors; NAME=PATH names the task. "
            "One of them may be the base, by its name: base, pretrained or zeroshot.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How to merge; `moma methods` lists the methods.")
    ] = "task-arithmetic",
    base: Base = None,
    lam: Annotated[
        float | None,
        typer.Option("--lambda", help="Factor on the multi-task vector; each method has its own."),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of entries that are kept of each task vector.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="A weight per expert in the order given, or NAME=W,NAME=W with 1 for the others; "
            "a negative weight makes the model forget the task.",
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="global|tensor",
            help="Whether thresholds are of the whole model (default) or of each tensor.",
        ),
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            metavar="mean|sum|weighted-mean", help="How ties joins the entries that agree in sign."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The expert to reconstruct, for emr and tall-mask; by default each of them.",
        ),
    ] = None,
    seed: Seed = 0,
    assignments: Assignments = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Type of the merged tensors: float32, bfloat16, float16, float64; default the "
            "base's. Computed in float32 and rounded once.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Take these tensors from the base; repeatable."),
    ] = None,
    heads: Heads = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "--recipe",
            metavar="FILE",
            help="A recipe.toml or a mergekit configuration (.yml) that says all of this; or a "
            "config.json for inputs that have none beside them.",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MERGED",
            help="Repeat the merge that wrote this, from the inputs it recorded; with -o "
            "elsewhere than in its place.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A name in .safetensors is a file, any other a folder with one loadable model "
            "per task. Default merged.safetensors, or merged/ where the experts are folders.",
        ),
    ] = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            metavar="base|min",
            help="Where experts have more or fewer rows of embeddings than the base: take the "
            "base's number of rows, or the smallest.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Of a folder of one model, as of language models: size of one file, such as 5GB; "
            "default 50GB, as transformers has it.",
        ),
    ] = None,
    other_base: Annotated[
        bool,
        typer.Option("--other-base", help="Add task vectors to a base they were not taken from."),
    ] = False,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite",
            help="Take entries that are NaN or infinity in an input from the base, and name them.",
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="auto|cpu|cuda",
            help="Of methods that compute on matrices, such as iso-c, tsv-m, wudi and orthomerge, "
            "default cpu; of those that take --data, default auto.",
        ),
    ] = None,
    data: SomeUnlabeledData = None,
    max_samples: MaxSamples = None,
    sample: Sample = None,
    text_column: TextColumn = None,
    max_length: MaxLength = None,
    strict: Strict = False,
    pooling: Pooling = None,
    features: Features = None,
    checkpoint_every: CheckpointEvery = 100,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Merge fine-tuned models of one base into one, without data or from unlabeled samples.

    Classifier heads are not merged but kept per task; integer tensors come from the base.
    Samples (--data) are for fisher, regmean, adamerging and the like.
    Prints the path of the output.
    """
    if like is not None:
        _refuse_all_but(context, "--like", ("like",))
        writing = {"max_shard_size": max_shard_size, "force": force, "dry_run": dry_run}
        _repeat(like, output, writing, as_json=as_json)
        return
    if config is not None and Path(config).suffix.lower() in _RECIPES:
        tolerances = {"other_base": other_base, "allow_nonfinite": allow_nonfinite}
        _refuse_all_but(context, config, ("config", "device", *tolerances))
        writing = {"max_shard_size": max_shard_size, "force": force, "dry_run": dry_run}
        _follow(config, output, writing | tolerances | {"device": device or "cpu"}, as_json=as_json)
        return
    if not checkpoints:
        raise UsageError(
            "no checkpoint was given",
            hint="name the files or folders to merge, or a recipe: --config recipe.toml",
        )
    options = options_of(
        assignments or [], lam=lam, density=density, aggregate=aggregate, task=task
    )
    factors = None if weights is None else weights_of(weights)
    choice = (max_samples, sample, text_column, max_length, strict or None)
    reading = None
    if data or any(item is not None for item in choice):
        reading = reading_from(
            max_samples,
            sample,
            seed=seed,
            text_column=text_column,
            label_column=None,
            max_length=max_length,
            strict=strict,
        )

    from momacli.cli.listening import listening
    from momacli.merge import merge as merge_checkpoints

    with listening() as listener:
        report = merge_checkpoints(
            checkpoints,
            method=method,
            base=base,
            output=output,
            options=options,
            weights=factors,
            scope=scope,
            seed=seed,
            dtype=dtype,
            exclude=exclude or [],
            heads=heads or [],
            config=config,
            vocab=vocab,
            max_shard_size=max_shard_size,
            other_base=other_base,
            allow_nonfinite=allow_nonfinite,
            device=device,
            data=data,
            reading=reading,
            pooling=pooling,
            features=features,
            checkpoint_every=checkpoint_every,
            force=force,
            dry_run=dry_run,
            listener=listener,
        )
    _show(report, as_json=as_json)


_RECIPES = (".toml", ".yml", ".yaml")
_WITH_RECIPE = ("output", "max_shard_size", "force", "dry_run", "as_json")


def _refuse_all_but(context: typer.Context, what: str, allowed: Sequence[str]) -> None:
    """Refuse options beside a recipe that says them all."""
    refuse_others(
        context,
        f"{what} already says what to merge and how",
        [*allowed, *_WITH_RECIPE],
        hint="beside it only -o, --force, --dry-run and --json have a meaning",
    )


def _follow(recipe: str, output: str | None, writing: Mapping[str, Any], *, as_json: bool) -> None:
    from momacli.cli.listening import listening
    from momacli.merge_recipe import merge_recipe

    with listening() as listener:
        report = merge_recipe(recipe, output=output, listener=listener, **writing)
    _show(report, as_json=as_json)


def _repeat(made: str, output: str | None, writing: Mapping[str, Any], *, as_json: bool) -> None:
    from momacli.cli.listening import listening
    from momacli.merge_recipe import merge_like

    with listening() as listener:
        report = merge_like(made, output=output, listener=listener, **writing)
    _show(report, as_json=as_json)


def _show(report: "MergeReport", *, as_json: bool) -> None:
    from momacli.cli.console import is_follower, print_json, print_path, say
    from momacli.cli.merge_summary import summary_lines

    if is_follower():
        return
    summary = summary_lines(report)
    if report.dry_run and not as_json:
        print("\n".join(summary))
        return
    for line in summary:
        say(line)
    if as_json:
        print_json(report)
    else:
        print_path(report.output)
