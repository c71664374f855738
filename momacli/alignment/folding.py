"""Write a merged model with an alignment folded in, tensor by tensor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.description import Description
from momacli.checkpoint.dtypes import torch_dtype
from momacli.checkpoint.feature_rule import rule_of, with_rule
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.multitask_writer import Sink, TaskPart, multitask_writer
from momacli.checkpoint.provenance import UNKNOWN_DIGEST, Input, Recipe, relative_path
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.checkpoint.writer import TensorSpec
from momacli.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    from momacli.alignment.alignment import Alignment

BLOCK = 1 << 20


@dataclass(frozen=True)
class AbsorbReport:
    """What was written: parameters of each task's model, before and after."""

    output: Path
    tasks: tuple[str, ...]
    masked_tensors: int
    parameters_before: dict[str, int]
    parameters_after: dict[str, int]
    seconds: float
    heads: int = 0  # that were trained anew


def write_absorbed(
    model: MultiTask,
    alignment: "Alignment",
    base: Checkpoint,
    target: Path,
    *,
    digest: Callable[[], str],
    extras: Mapping[str, Callable[[Path], None]] | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    listener: Listener = ignore,
) -> AbsorbReport:
    """Write the absorbed model of inputs that are known to fit.

    digest: the SHA-256 of the alignment's file, asked for at the end.
    extras: files to write into the output folder before all else, by name.
    metrics: of each task, what its card tells.
    """
    encoder, parts = _split(model, alignment)
    parts = [replace(part, metrics=(metrics or {}).get(part.task, {})) for part in parts]
    with multitask_writer(
        target,
        encoder,
        parts,
        recipe_at(target, alignment, UNKNOWN_DIGEST),
        as_folder=model.path.is_dir(),
        extras=extras,
    ) as writer:
        compute(model, alignment, base, writer, listener)
        writer.finish(recipe_at(target, alignment, digest()))
    counts = {task: _count(_specs(one)) for task, one in model.tasks.items()}
    with MultiTask.open(target) as written:
        after = {task: _count(_specs(one)) for task, one in written.tasks.items()}
    masked = sum(spec.name in alignment.masked for spec in encoder)
    return AbsorbReport(
        target, tuple(model.tasks), masked, counts, after, 0.0, len(alignment.heads)
    )


def compute(
    model: MultiTask, alignment: "Alignment", base: Checkpoint, sink: Sink, listener: Listener
) -> None:
    """Hand all tensors of the absorbed model to `sink`."""
    encoder, parts = _split(model, alignment)
    first = next(iter(model.tasks.values()))
    total = sum(spec.elements for spec in encoder)
    done = 0
    for spec in encoder:
        _write_encoder(sink, spec, first, alignment, base)
        done += spec.elements
        listener(Progress("absorbing", done, total, "parameters"))
    for part in parts:
        _write_head(sink, part, model.tasks[part.task], alignment)


def recipe_at(target: Path, alignment: "Alignment", digest: str) -> Recipe:
    """The recipe of a model at `target` that absorbed an alignment with this SHA-256."""
    old, recipe = alignment.place, alignment.recipe
    return replace(
        recipe,
        base=recipe.base and _relocate(recipe.base, old, target),
        merged=recipe.merged and _relocate(recipe.merged, old, target),
        inputs=[_relocate(item, old, target) for item in recipe.inputs],
        alignment=digest,
    )


def parts_of(model: MultiTask, alignment: "Alignment") -> list[TaskPart]:
    """What is each task's own in the absorbed model."""
    return _split(model, alignment)[1]


def _split(model: MultiTask, alignment: "Alignment") -> tuple[list[TensorSpec], list[TaskPart]]:
    """The encoder's tensors, and what is each task's own."""
    heads = set(alignment.recipe.heads)
    first = next(iter(model.tasks.values()))
    encoder = [spec for spec in _specs(first) if spec.name not in heads]
    parts = [
        TaskPart(
            task,
            [spec for spec in _specs(one) if spec.name in heads],
            _description(one, alignment.recipe.configs.get(task)),
        )
        for task, one in model.tasks.items()
    ]
    return encoder, parts


def _description(model: TaskModel, aligned: Mapping[str, Any] | None) -> Description | None:
    """The description of a task's model, with the features that it was aligned with."""
    if model.description is None or aligned is None:
        return model.description
    config = with_rule(model.description.config, rule_of(aligned))
    return replace(model.description, config=config)


def record_merged(model: MultiTask, output: Path) -> Input:
    """Describe a merged model as an input of `output`, with the SHA-256 of all its files.

    The encoder that all task folders share is one file on disk and read once.
    """
    files: dict[str, str] = {}
    known: dict[tuple[int, int], str] = {}
    for checkpoint in model.checkpoints:
        prefix = f"{checkpoint.path.name}/" if len(model.checkpoints) > 1 else ""
        for file in checkpoint.files:
            if file.identity not in known:
                known[file.identity] = file.sha256()
            files[prefix + file.path.name] = known[file.identity]
    return Input(model.path.name, relative_path(model.path, output), files)


def _specs(model: TaskModel) -> list[TensorSpec]:
    return [TensorSpec(own, entry.dtype, entry.shape) for own, entry in model.entries.items()]


def _count(specs: Sequence[TensorSpec]) -> int:
    return sum(spec.elements for spec in specs)


def _write_encoder(
    sink: Sink,
    spec: TensorSpec,
    model: TaskModel,
    alignment: "Alignment",
    base: Checkpoint,
) -> None:
    from momacli.alignment.mask import masked

    key = model.keys[spec.name]
    for start, stop in iterate_blocks(spec.elements, BLOCK):
        theta: Any = model.checkpoint.read_range(key, start, stop)
        if spec.name in alignment.masked:
            theta_0 = base.read_range(spec.name, start, stop).float()
            mask = alignment.read_mask(spec.name, start, stop)
            theta = masked(theta_0, theta.float() - theta_0, mask, alignment.headroom)
        sink.append(spec.name, theta.to(torch_dtype(spec.dtype, spec.name)))


def _write_head(sink: Sink, part: TaskPart, model: TaskModel, alignment: "Alignment") -> None:
    from momacli.alignment.alignment import folded_head

    trained = alignment.heads.get(part.task, {})
    for spec in part.heads:
        values = model.checkpoint.read(model.keys[spec.name])
        place, _, kind = spec.name.rpartition(".")
        if place == alignment.layer and kind in trained:
            values = trained[kind].to(torch_dtype(spec.dtype, spec.name))
        elif spec.name == f"{alignment.layer}.weight" and part.task in alignment.transforms:
            values = folded_head(values, alignment.transforms[part.task])
        sink.append_head(part.task, spec.name, values)


def _relocate(item: Input, old: Path, new: Path) -> Input:
    return replace(item, path=relative_path(old.resolve().parent / item.path, new))
