"""Align a merged model with its experts' heads from unlabeled data."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from momacli.alignment.beside import ADAPTER, ALIGNMENT
from momacli.alignment.catalog import (
    ADDING,
    DEEP,
    MOMA,
    FeatureMethod,
    feature_method,
    known_method,
)
from momacli.alignment.report import AlignReport
from momacli.alignment.settings import Settings
from momacli.checkpoint.multitask import TaskModel
from momacli.data.reading import Reading
from momacli.errors import ModelError, UsageError
from momacli.progress import Listener, ignore

if TYPE_CHECKING:
    import torch

    from momacli.alignment.encoding import TaskData
    from momacli.alignment.inputs import Inputs
    from momacli.alignment.outcome import Outcome
    from momacli.checkpoint.provenance import Recipe
    from momacli.data.features import CacheType, FeatureCache
    from momacli.data.folders import Data
    from momacli.models.device import Precision


def align(
    merged: str | Path | None = None,
    *,
    data: "Data",
    method: str = MOMA,
    settings: Settings | None = None,
    options: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    base: str | Path | None = None,
    config: str | Path | None = None,
    pooling: str | None = None,
    features: str | None = None,
    cache: str | Path | None = None,
    cache_dtype: "CacheType" = "float32",
    checkpoint_every: int = 100,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> AlignReport:
    """Fit what a method learns to unlabeled samples, and write the aligned model.

    "moma" folds a mask and transforms into the weights, "aligned-c" trains the heads; "surgery",
    "probsurgery" and "surgery-v2" leave the weights and put small adapters behind the encoder,
    the last also behind its blocks, in a file beside.

    merged: a file or folder that `merge` wrote; default `merged/` or `merged.safetensors`.
    settings: of the method "moma".
    options: of the other methods, by name; what is not given is as published.
    data: a folder with one sub-folder or text file of samples per task, "TASK=PATH", or several.
    reading: which samples are used, and where they are in the files.
    pooling: what makes one vector of an encoder's output: "cls", "pooler", "mean" or
        "masked-mean"; by default what the checkpoint says.
    features: dotted path of the module whose output is meant, where it is not the encoder's.
    output: default `aligned/`, with the alignment itself in `aligned/alignment.safetensors`,
        or `aligned.safetensors` with `aligned.alignment.safetensors` beside it. A file of
        adapters is called `surgery` where that of an alignment is called `alignment`.
    cache: folder of fine-tuned features, default ~/.cache/moma. `prepare` fills it task by task.
    cache_dtype: "float16" keeps them in half the size; they are rounded for this run, too.
    checkpoint_every: steps after which the state is kept beside the output, so that the same
        call goes on where a run was stopped; 0 keeps it only when the run is interrupted. The
        other methods keep what they have after every task.

    Processes that torchrun starts together share the samples of every pass and the state of the
    mask, and come to the same report; the first one writes.

    Raises MomaErrors before any work where inputs do not fit, and DivergenceError if a loss is
    not finite; nothing is written then.
    """
    from momacli.alignment.inputs import default_input, open_inputs
    from momacli.data.features import FeatureCache, default_cache
    from momacli.merging.ranks import Ranks

    started = time.monotonic()
    method = known_method(method)
    job = _job(method, settings, options or {})
    with ExitStack() as stack:
        inputs = open_inputs(
            stack,
            Path(merged) if merged is not None else default_input("align"),
            data,
            device=device,
            output=output,
            base=base,
            config=Path(config) if config else None,
            pooling=pooling,
            features=features,
            force=force,
            listener=listener,
            beside=ADAPTER if method in ADDING else ALIGNMENT,
        )
        parameters = {task: _parameters(one) for task, one in inputs.model.tasks.items()}
        job = _on(inputs.device, job, max(parameters.values()))
        report = AlignReport(
            output=inputs.target,
            alignment=inputs.alignment,
            tasks={},
            settings=_settings(job),
            headroom=1.0,
            masked_share=0.0,
            steps=0,
            parameters=parameters,
            device=str(inputs.device),
            seconds=0.0,
            dry_run=dry_run,
            method=method,
            objective=job.objective,
        )
        if not dry_run:
            folder = Path(cache) if cache else default_cache()
            leads = Ranks.apart().number == 0
            kept = FeatureCache(folder, dtype=cache_dtype, writes=leads, listener=listener)
            report = _run(inputs, report, job, reading or Reading(), kept, checkpoint_every)
        return replace(report, seconds=time.monotonic() - started)


def _job(
    method: str, settings: Settings | None, options: Mapping[str, Any]
) -> Settings | FeatureMethod:
    """What is to be done, in full. Raises UsageError."""
    if method == MOMA:
        if options:
            raise UsageError("method moma takes settings, not options")
        return settings or Settings()
    if settings is not None:
        raise UsageError(f"method {method} takes options, not moma's settings")
    return feature_method(method, options)


def _on(
    device: "torch.device", job: Settings | FeatureMethod, parameters: int
) -> Settings | FeatureMethod:
    """The same, with what it leaves to the device, for models of that many parameters."""
    from momacli.models.precision import choose_precision

    if isinstance(job, FeatureMethod):
        return job
    chosen = choose_precision(job.precision, device, parameters)
    return replace(job, precision=cast("Precision", chosen))


def _settings(job: Settings | FeatureMethod) -> dict[str, Any]:
    """All that determines a run, by name; moma's own settings go without its name."""
    if isinstance(job, Settings):
        return asdict(job)
    return {"method": job.name, **job.options}


def _run(
    inputs: "Inputs",
    report: AlignReport,
    job: Settings | FeatureMethod,
    reading: Reading,
    cache: "FeatureCache",
    checkpoint_every: int,
) -> AlignReport:
    from momacli.alignment.in_depth import fit_in_depth
    from momacli.alignment.moma import fit_moma
    from momacli.alignment.on_features import fit_on_features
    from momacli.alignment.output import recipe_of
    from momacli.alignment.resume import Keeper, state_key
    from momacli.alignment.samples import open_network, prepare_tasks, reader
    from momacli.merging.ranks import Ranks

    network = open_network(inputs)
    ranks = Ranks.here()
    if isinstance(job, Settings):
        reading = replace(reading, views=job.views)
    tasks = prepare_tasks(inputs, network, reading, cache, ranks)
    settings, recipe = _settings(job), recipe_of(inputs)
    assert recipe.merged is not None
    finetuned = [task.finetuned for task in tasks]
    keeper = Keeper(
        inputs.target.with_name(f"{inputs.target.stem}.state.safetensors"),
        state_key(settings, recipe.merged.files, finetuned, inputs.recipe.configs),
        every=checkpoint_every,
        listener=inputs.listener,
        writes=ranks.number == 0,
    )
    if isinstance(job, Settings):
        outcome = fit_moma(inputs, network, tasks, job, keeper, ranks)
    elif job.name in DEEP:
        outcome = fit_in_depth(inputs, network, tasks, job, keeper)
    else:
        network.load_encoder(reader(inputs.first))
        outcome = fit_on_features(network, tasks, job, keeper, inputs.listener)
    found = {} if outcome.batch_size is None else {"batch_size": outcome.batch_size}
    settings |= found
    added = {task: one.parameters for task, one in outcome.adapters.items()}
    if added:
        settings["added_parameters"] = max(added.values())
    recipe = replace(recipe, parameters={**recipe.parameters, **settings})
    report = replace(report, settings={**report.settings, **found}, added=added, cache=cache.use())
    if ranks.number == 0:
        report = _written(inputs, tasks, outcome, recipe, network.head_name, report)
        keeper.discard()
    return ranks.from_first(report)


def _written(
    inputs: "Inputs",
    tasks: Sequence["TaskData"],
    outcome: "Outcome",
    recipe: "Recipe",
    layer: str,
    report: AlignReport,
) -> AlignReport:
    """Write what was fitted, look at what was written, and add both to the report."""
    from momacli.alignment.output import differences, write_aligned

    absorbed = write_aligned(inputs, outcome, recipe, layer)
    if absorbed.parameters_after != absorbed.parameters_before:
        raise ModelError(f"{inputs.target} does not have as many parameters as the merged model")
    apart = differences(inputs, {task.task: task for task in tasks}, outcome)
    return replace(
        report,
        tasks={t: replace(one, logit_difference=apart[t]) for t, one in outcome.reports.items()},
        headroom=outcome.headroom,
        masked_share=outcome.masked_share,
        samples_per_second=outcome.samples_per_second,
        steps=outcome.steps,
        parameters=absorbed.parameters_after,
    )


def _parameters(model: TaskModel) -> int:
    return sum(entry.elements for entry in model.entries.values())
