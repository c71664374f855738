"""Align a merged model with its experts' heads from unlabeled data, at the original size."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.absorb import AbsorbReport, record_merged, write_absorbed
from momacli.alignment.settings import Settings
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.plan import Expert, expert_from
from momacli.checkpoint.provenance import (
    Input,
    Recipe,
    check_unchanged,
    open_input,
    record_input,
)
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.checkpoint.renaming import under_names_of
from momacli.checkpoint.staging import staged_file
from momacli.data.reading import Reading
from momacli.errors import ConflictError, ModelError, UsageError
from momacli.progress import Listener, Notice, ignore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from momacli.alignment.alignment import Alignment
    from momacli.alignment.fit import Fitted, TaskData
    from momacli.data.folders import Data
    from momacli.models.classification import Classifier
    from momacli.models.clip import VisionTower

DEFAULT_INPUTS = ("merged", "merged.safetensors")
ALIGNMENT = "alignment.safetensors"
"""The alignment's file in an output folder; an output file has NAME.alignment.safetensors."""


@dataclass(frozen=True)
class TaskReport:
    """What alignment did for one task, on its unlabeled samples."""

    samples: int
    objective_before: float
    objective_after: float
    cosine_before: float  # mean of cos(merged, fine-tuned) (paper, section 3.4)
    cosine_after: float
    coefficient_before: float
    coefficient_after: float
    orthogonality_error: float  # max |A^T A - I|
    logit_difference: float  # written model against W A g(x) + b, on a real batch


@dataclass(frozen=True)
class AlignReport:
    """What an alignment achieved and where it is."""

    output: Path
    alignment: Path
    tasks: Mapping[str, TaskReport]
    settings: Mapping[str, Any]
    headroom: float
    masked_share: float
    steps: int
    parameters: Mapping[str, int]  # of each task's model: as many as it had before
    device: str
    seconds: float
    dry_run: bool = False


@dataclass(frozen=True)
class _Inputs:
    """A merged model with everything it was made from, opened and checked."""

    model: MultiTask
    recipe: Recipe
    base: Checkpoint
    experts: Mapping[str, Expert]
    data: Mapping[str, Path]
    reading: Reading
    device: "torch.device"
    target: Path
    alignment: Path
    settings: Settings
    cache: Path
    checkpoint_every: int
    listener: Listener = field(repr=False, default=ignore)


def align(
    merged: str | Path | None = None,
    *,
    data: "Data",
    settings: Settings | None = None,
    reading: Reading | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    base: str | Path | None = None,
    config: str | Path | None = None,
    cache: str | Path | None = None,
    checkpoint_every: int = 100,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> AlignReport:
    """Fit mask and transforms to unlabeled samples and write the absorbed model.

    merged: a file or folder that `merge` wrote; default `merged/` or `merged.safetensors`.
    data: a folder with one sub-folder or text file of samples per task, "TASK=PATH", or several.
    reading: which samples are used, and where they are in the files.
    output: default `aligned/`, with the alignment itself in `aligned/alignment.safetensors`,
        or `aligned.safetensors` with `aligned.alignment.safetensors` beside it.
    cache: folder of fine-tuned features, default ~/.cache/moma.
    checkpoint_every: steps after which the state is kept beside the output, so that the same
        call goes on where a run was stopped; 0 keeps it only when the run is interrupted.

    Raises MomaErrors before any work where inputs do not fit, and DivergenceError if a loss is
    not finite; nothing is written then.
    """
    from momacli.data.features import default_cache

    started = time.monotonic()
    with ExitStack() as stack:
        inputs = _open(
            stack,
            Path(merged) if merged is not None else _default_input(),
            data,
            device=device,
            output=output,
            base=base,
            config=Path(config) if config else None,
            force=force,
            settings=settings or Settings(),
            cache=Path(cache) if cache else default_cache(),
            checkpoint_every=checkpoint_every,
            reading=reading or Reading(),
            listener=listener,
        )
        report = AlignReport(
            output=inputs.target,
            alignment=inputs.alignment,
            tasks={},
            settings=asdict(inputs.settings),
            headroom=1.0,
            masked_share=0.0,
            steps=0,
            parameters={task: _parameters(one) for task, one in inputs.model.tasks.items()},
            device=str(inputs.device),
            seconds=0.0,
            dry_run=dry_run,
        )
        if not dry_run:
            report = _run(inputs, report)
        return replace(report, seconds=time.monotonic() - started)


def _default_input() -> Path:
    found = [Path(name) for name in DEFAULT_INPUTS if Path(name).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            "both merged/ and merged.safetensors are here", hint="say which: moma align merged/"
        )
    raise UsageError(
        "there is no merged/ and no merged.safetensors here",
        hint="merge first, or give the merged model: moma align PATH --data …",
    )


def choose_device(device: str) -> "torch.device":
    """The torch device for auto, cpu or cuda. Raises UsageError if it is not there."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            "--device cuda: this machine has no usable CUDA device",
            hint="use --device cpu, or auto to take what there is",
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device}", hint="use auto, cpu or cuda") from error


def _open(
    stack: ExitStack,
    path: Path,
    data: "Data",
    *,
    device: str,
    output: str | Path | None,
    base: str | Path | None,
    config: Path | None,
    force: bool,
    **rest: Any,
) -> _Inputs:
    """Open all inputs and refuse what does not fit, before any work."""
    from momacli.data.folders import task_sources

    chosen = choose_device(device)
    model = stack.enter_context(MultiTask.open(path, config=config))
    recipe = model.recipe
    if recipe is None or not recipe.inputs:
        raise ConflictError(
            f"{path} does not say what it was merged from",
            hint="only models written by `moma merge` can be aligned",
        )
    if not recipe.heads:
        raise ConflictError(
            f"{path} was merged without recognising its heads",
            hint="merge again with --heads GLOB, or with --config to say what model it is",
        )
    undescribed = [task for task, one in model.tasks.items() if one.description is None]
    if undescribed:
        raise ModelError(
            f"{path} does not say what kind of model it is",
            hint="give its config.json with --config",
        )
    sources = task_sources(data, list(model.tasks))
    opened = (
        stack.enter_context(Checkpoint.open(Path(base)))
        if base is not None
        else _open_recorded_base(stack, recipe, path)
    )
    names = next(iter(model.tasks.values())).keys
    opened = under_names_of(opened, names)
    experts = {}
    for item in recipe.inputs:
        checkpoint = under_names_of(_with_head(stack, item, path), names)
        experts[item.name] = expert_from(checkpoint, recipe.heads)
    for item, checkpoint in [
        *([(recipe.base, opened)] if recipe.base else []),
        *((item, experts[item.name].checkpoint) for item in recipe.inputs),
    ]:
        check_unchanged(item, checkpoint, path)
    target = choose_output(
        output,
        "aligned" if path.is_dir() else "aligned.safetensors",
        inputs=[
            path,
            opened.path,
            *(one.checkpoint.path for one in experts.values()),
            *sources.values(),
        ],
        force=force,
    )
    if path.is_dir():
        alignment = target / ALIGNMENT
    else:
        beside = target.with_name(f"{target.stem}.{ALIGNMENT}")
        alignment = choose_output(beside, beside.name, inputs=[path], force=force)
    return _Inputs(
        model,
        recipe,
        opened,
        experts,
        data=sources,
        device=chosen,
        target=target,
        alignment=alignment,
        **rest,
    )


def _with_head(stack: ExitStack, item: Input, path: Path) -> Checkpoint:
    checkpoint = stack.enter_context(open_input(item, path))
    return stack.enter_context(with_head_file(checkpoint))


def _open_recorded_base(stack: ExitStack, recipe: Recipe, path: Path) -> Checkpoint:
    if recipe.base is None:
        raise UsageError(f"{path} does not name its base", hint="give it with --base")
    return stack.enter_context(open_input(recipe.base, path))


def _run(inputs: _Inputs, report: AlignReport) -> AlignReport:
    from momacli.alignment.alignment import alignment_of
    from momacli.alignment.fit import fit_alignment
    from momacli.alignment.resume import Keeper, state_key

    settings = inputs.settings
    classifier = _classifier(inputs)
    tasks = _task_data(inputs, classifier)
    headroom = _headroom(inputs, settings)
    classifier.load_encoder(_reader(next(iter(inputs.model.tasks.values()))))
    merged = record_merged(inputs.model, inputs.alignment)
    keeper = Keeper(
        inputs.target.with_name(f"{inputs.target.stem}.state.safetensors"),
        state_key(settings, merged.files, [task.finetuned for task in tasks]),
        every=inputs.checkpoint_every,
        listener=inputs.listener,
    )
    fitted = fit_alignment(
        classifier,
        lambda key: inputs.base.read(key),
        tasks,
        settings,
        headroom=headroom,
        keeper=keeper,
        listener=inputs.listener,
    )
    recipe = Recipe(
        command="align",
        parameters={"merge": dict(inputs.recipe.parameters), **asdict(settings)},
        base=record_input(inputs.base, inputs.alignment, digests=True),
        inputs=[
            record_input(
                one.checkpoint,
                inputs.alignment,
                digests=True,
                task_vector=one.is_task_vector,
            )
            for one in inputs.experts.values()
        ],
        heads=inputs.recipe.heads,
        tasks=inputs.recipe.tasks,
        configs=inputs.recipe.configs,
        merged=merged,
    )
    alignment = alignment_of(
        {task.task: A for task, A in zip(tasks, fitted.transforms, strict=True)},
        fitted.masks,
        headroom=fitted.headroom,
        layer=classifier.head_name,
        recipe=recipe,
        place=inputs.alignment,
    )
    absorbed = _write(inputs, alignment, fitted.masks)
    keeper.discard()
    if absorbed.parameters_after != absorbed.parameters_before:
        raise ModelError(f"{inputs.target} does not have as many parameters as the merged model")
    differences = _verify(inputs, tasks, fitted)
    return replace(
        report,
        tasks=_task_reports(tasks, fitted, differences),
        headroom=fitted.headroom,
        masked_share=fitted.masked_share,
        steps=fitted.steps,
        parameters=absorbed.parameters_after,
    )


def _write(inputs: _Inputs, alignment: "Alignment", masks: "Mapping[str, Tensor]") -> AbsorbReport:
    """Write the aligned model and the alignment, both or neither.

    In a folder the alignment is one of its files; a file has it beside.
    """
    from momacli.alignment.alignment import write_alignment

    def write(path: Path) -> None:
        write_alignment(path, alignment, masks)

    arguments = (inputs.model, alignment, inputs.base, inputs.target)
    if inputs.model.path.is_dir():
        extras = {inputs.alignment.name: write}
        return write_absorbed(*arguments, extras=extras, listener=inputs.listener)
    with staged_file(inputs.alignment) as staged:
        write(staged)
        return write_absorbed(*arguments, listener=inputs.listener)


def _classifier(inputs: _Inputs) -> "Classifier | VisionTower":
    """Build the network of the first task, which all tasks' encoders fit."""
    from momacli.models.families import open_classifier

    first = next(iter(inputs.model.tasks.values()))
    assert first.description is not None
    classifier = open_classifier(
        first.description.config, first.entries, heads=inputs.recipe.heads, device=inputs.device
    )
    classifier.load(_reader(first), first.keys, source=str(inputs.model.path))
    return classifier


def _reader(model: TaskModel) -> Any:
    return lambda key: model.checkpoint.read(model.keys[key])


def _task_data(inputs: _Inputs, classifier: "Classifier | VisionTower") -> list["TaskData"]:
    """Prepare each task's samples and its fine-tuned features, one encoder at a time."""
    import torch

    from momacli.alignment.fit import TaskData, encode_all
    from momacli.data.features import FeatureCache, feature_key
    from momacli.data.loading import Samples, load_samples

    cache = FeatureCache(inputs.cache, listener=inputs.listener)
    tasks: list[TaskData] = []
    for task, model in inputs.model.tasks.items():
        assert model.description is not None
        source = inputs.data[task]
        samples = load_samples(
            source, model.description, task, inputs.reading, listener=inputs.listener
        )

        def batch(indices: "Tensor", samples: Samples = samples) -> dict[str, "Tensor"]:
            values = samples.batch(indices)
            return {key: value.to(inputs.device) for key, value in values.items()}

        expert = inputs.experts[task]
        prepared: dict[str, Any] = {**samples.preparation, **_processor(model)}
        prepared["config"] = dict(model.description.config)
        weights = expert.checkpoint.sha256()
        if expert.is_task_vector:
            weights = weights | {f"base/{k}": v for k, v in inputs.base.sha256().items()}
        key = feature_key(weights, prepared, samples.files, source)
        features = cache.get(key, len(samples))
        if not tasks:
            classifier.find_head(batch(torch.arange(min(4, len(samples)))))
        head = classifier.head(_reader(model), model.keys)
        data = TaskData(task, len(samples), batch, torch.empty(0, 0), head, samples.padding)
        if features is None:
            classifier.load_encoder(_expert_reader(expert, inputs.base))
            features = encode_all(
                classifier, [data], f"fine-tuned features of {task}", inputs.listener
            )[0]
            cache.put(key, features)
        tasks.append(replace(data, finetuned=features.to(inputs.device)))
    return tasks


def _processor(model: TaskModel) -> dict[str, str]:
    """The content of the files that prepare inputs, for the key of the cache."""
    assert model.description is not None
    return {
        file.name: file.read_text(encoding="utf-8", errors="replace")
        for file in model.description.companions
    }


def _expert_reader(expert: Expert, base: Checkpoint) -> Any:
    """Read theta_t: the expert's own tensors, or base plus task vector."""
    entries = expert.checkpoint.entries

    def read(key: str) -> "Tensor":
        if key not in entries:
            return base.read(key)
        if expert.is_task_vector:
            return base.read(key).float() + expert.checkpoint.read(key).float()
        return expert.checkpoint.read(key)

    return read


def _headroom(inputs: _Inputs, settings: Settings) -> float:
    """h: as given, or such that the multi-task vector may grow to the norm of sum_t tau_t.

    At least 2, so that the start h sigma(S) = 1 leaves room both ways.
    """
    if settings.headroom != "auto" or settings.mask == "none":
        return 1.0 if settings.headroom == "auto" else settings.headroom
    first = next(iter(inputs.model.tasks.values()))
    full = merged = 0.0
    for name, entry in inputs.base.entries.items():
        if name not in first.keys or name in inputs.recipe.heads or "I" in entry.dtype:
            continue
        for start, stop in iterate_blocks(entry.elements, 1 << 20):
            theta_0 = inputs.base.read_range(name, start, stop).double()
            theta_m = first.checkpoint.read_range(first.keys[name], start, stop).double()
            total = theta_0 * 0
            for expert in inputs.experts.values():
                if name in expert.checkpoint.entries:
                    values = expert.checkpoint.read_range(name, start, stop).double()
                    total += values if expert.is_task_vector else values - theta_0
            full += float(total.square().sum())
            merged += float((theta_m - theta_0).square().sum())
    if merged == 0:
        raise ConflictError(
            f"{inputs.model.path} is the base itself: there is no multi-task vector to mask",
            hint="merge with another method or --lambda, or align with --mask none",
        )
    return max(2.0, math.sqrt(full / merged))


def _verify(inputs: _Inputs, tasks: Sequence["TaskData"], fitted: "Fitted") -> dict[str, float]:
    """Load the written model and compare its logits with W A g(x; theta_m) + b, per task."""
    import torch

    from momacli.models.families import open_classifier

    differences = {}
    with MultiTask.open(inputs.target) as written, torch.no_grad():
        for task, A, features in zip(tasks, fitted.transforms, fitted.features_after, strict=True):
            model = written.tasks[task.task]
            assert model.description is not None
            loaded = open_classifier(model.description.config, model.entries, device=inputs.device)
            loaded.load(_reader(model), model.keys, source=str(inputs.target))
            indices = torch.arange(min(16, task.count))
            expected = task.head(features[: len(indices)] @ A.mT)
            found = loaded.logits(task.batch(indices)).float()
            differences[task.task] = float((found - expected).abs().max())
    worst = max(differences.values())
    if worst > 1e-2:
        inputs.listener(
            Notice(f"logits of {inputs.target} differ by {worst:.1e} from the aligned ones")
        )
    return differences


def _task_reports(
    tasks: Sequence["TaskData"], fitted: "Fitted", differences: Mapping[str, float]
) -> dict[str, TaskReport]:
    from momacli.features.metrics import coefficient, cosine
    from momacli.features.procrustes import orthogonality_error

    reports = {}
    for t, task in enumerate(tasks):
        A = fitted.transforms[t]
        before, after = fitted.features_before[t], fitted.features_after[t] @ A.mT
        reports[task.task] = TaskReport(
            samples=task.count,
            objective_before=float(fitted.objective_before[t]),
            objective_after=float(fitted.objective_after[t]),
            cosine_before=float(cosine(before, task.finetuned).mean()),
            cosine_after=float(cosine(after, task.finetuned).mean()),
            coefficient_before=float(coefficient(before, task.finetuned).mean()),
            coefficient_after=float(coefficient(after, task.finetuned).mean()),
            orthogonality_error=float(orthogonality_error(A)),
            logit_difference=differences[task.task],
        )
    return reports


def _parameters(model: TaskModel) -> int:
    return sum(entry.elements for entry in model.entries.values())
