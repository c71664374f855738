"""What an alignment starts from: a merged model and everything it was made of."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.adapters.checkpoint import with_adapter
from momacli.alignment.beside import ALIGNMENT, has_adapters
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.plan import Expert, expert_from
from momacli.checkpoint.provenance import KEY, Input, Recipe, check_unchanged, open_input
from momacli.checkpoint.reader import Checkpoint, is_adapter
from momacli.checkpoint.renaming import under_names_of
from momacli.data.folders import task_sources
from momacli.errors import ConflictError, ModelError, UsageError
from momacli.models.device import choose_device
from momacli.models.inputs import stored_as
from momacli.progress import Listener

if TYPE_CHECKING:
    import torch

    from momacli.data.folders import Data

_DEFAULTS = ("merged", "merged.safetensors")


@dataclass(frozen=True)
class Sources:
    """A merged model with everything it was made from, and samples; opened and checked."""

    model: MultiTask
    recipe: Recipe
    base: Checkpoint
    experts: Mapping[str, Expert]
    data: Mapping[str, Path]
    device: "torch.device"
    listener: Listener

    @property
    def first(self) -> TaskModel:
        """Any one task's model: their encoders are the same."""
        return next(iter(self.model.tasks.values()))


@dataclass(frozen=True)
class Inputs(Sources):
    """The same, and where an alignment is to be written."""

    target: Path
    alignment: Path


def default_input(command: str) -> Path:
    """The merged model in this folder, where the command names none. Raises UsageError."""
    found = [Path(name) for name in _DEFAULTS if Path(name).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            "both merged/ and merged.safetensors are here",
            hint=f"say which: moma {command} merged/",
        )
    raise UsageError(
        "there is no merged/ and no merged.safetensors here",
        hint=f"merge first, or give the merged model: moma {command} PATH --data …",
    )


def open_inputs(
    stack: ExitStack,
    path: Path,
    data: "Data",
    *,
    device: str,
    output: str | Path | None,
    base: str | Path | None,
    config: Path | None,
    pooling: str | None,
    features: str | None,
    force: bool,
    listener: Listener,
    beside: str = ALIGNMENT,
) -> Inputs:
    """Open all inputs and refuse what does not fit, before any work.

    beside: what the alignment's file is called.

    They stay open as long as the stack. Raises MomaErrors naming what is missing, has changed
    since the merge, or would be overwritten.
    """
    found = open_sources(
        stack,
        path,
        data,
        device=device,
        base=base,
        config=config,
        pooling=pooling,
        features=features,
        listener=listener,
    )
    target = choose_output(
        output,
        "aligned" if path.is_dir() else "aligned.safetensors",
        inputs=[
            path,
            found.base.path,
            *(one.checkpoint.path for one in found.experts.values()),
            *found.data.values(),
        ],
        force=force,
    )
    if path.is_dir():
        alignment = target / beside
    else:
        place = target.with_name(f"{target.stem}.{beside}")
        alignment = choose_output(place, place.name, inputs=[path], force=force)
    own = {field.name: getattr(found, field.name) for field in fields(found)}
    return Inputs(**own, target=target, alignment=alignment)


def open_sources(
    stack: ExitStack,
    path: Path,
    data: "Data",
    *,
    device: str,
    base: str | Path | None,
    config: Path | None,
    pooling: str | None,
    features: str | None,
    listener: Listener,
    tasks: Collection[str] | None = None,
) -> Sources:
    """Open a merged model, what it was made from and its samples; refuse what does not fit.

    tasks: of which experts and samples are needed, all by default.

    They stay open as long as the stack. Raises MomaErrors naming what is missing or has changed
    since the merge.
    """
    chosen = choose_device(device)
    model = stack.enter_context(MultiTask.open(path, config=config))
    if tasks is not None:
        data = _of_tasks(data, [task for task in model.tasks if task not in tasks])
        model = _with_tasks(model, tasks)
    recipe = model.recipe
    if recipe is None and all(KEY in one.metadata for one in model.checkpoints):
        raise ConflictError(
            f"{path} holds a model of its own for each task, which share no encoder",
            hint=f"align one of them, such as {model.checkpoints[0].path}",
        )
    if has_adapters(recipe):
        raise ConflictError(
            f"{path} has adapters, which belong to its features as they are",
            hint="align the merged model that it was made from",
        )
    if recipe is None or not recipe.inputs or recipe.command == "convert":
        raise ConflictError(
            f"{path} does not say what it was merged from",
            hint="give a model that `moma merge` or `moma align` wrote",
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
    if pooling is not None or features is not None:
        model = model.with_features(pooling, features)
        configs = {
            task: one.description.config for task, one in model.tasks.items() if one.description
        }
        recipe = replace(recipe, configs=configs)
    sources = task_sources(data, list(model.tasks))
    opened = (
        stack.enter_context(Checkpoint.open(Path(base)))
        if base is not None
        else _open_recorded_base(stack, recipe, path)
    )
    names = next(iter(model.tasks.values())).keys
    opened = under_names_of(opened, names)
    experts = {}
    wanted = [item for item in recipe.inputs if tasks is None or item.name in tasks]
    for item in wanted:
        checkpoint = _with_head(stack, item, path)
        if is_adapter(checkpoint):
            described = model.tasks[item.name].description if item.name in model.tasks else None
            checkpoint = with_adapter(opened, checkpoint, described, stored_as=stored_as)
        else:
            checkpoint = under_names_of(checkpoint, names)
        experts[item.name] = expert_from(checkpoint, recipe.heads)
    for item, checkpoint in [
        *([(recipe.base, opened)] if recipe.base else []),
        *((item, experts[item.name].checkpoint) for item in wanted),
    ]:
        check_unchanged(item, checkpoint, path)
    return Sources(model, recipe, opened, experts, sources, chosen, listener)


def _of_tasks(data: "Data", others: Collection[str]) -> "Data":
    """The places of samples without those that are said to be of other tasks."""
    given = [data] if isinstance(data, (str, Path)) else data
    return [item for item in given if str(item).partition("=")[0] not in others]


def _with_tasks(model: MultiTask, tasks: Collection[str]) -> MultiTask:
    """The model with these of its tasks. Raises UsageError for others."""
    unknown = [task for task in tasks if task not in model.tasks]
    if unknown:
        raise UsageError(
            f"{model.path} has no task {', '.join(unknown)}",
            hint=f"it has {', '.join(model.tasks)}",
        )
    return replace(model, tasks={t: one for t, one in model.tasks.items() if t in tasks})


def _with_head(stack: ExitStack, item: Input, path: Path) -> Checkpoint:
    checkpoint = stack.enter_context(open_input(item, path))
    return stack.enter_context(with_head_file(checkpoint))


def _open_recorded_base(stack: ExitStack, recipe: Recipe, path: Path) -> Checkpoint:
    if recipe.base is None:
        raise UsageError(f"{path} does not name its base", hint="give it with --base")
    return stack.enter_context(open_input(recipe.base, path))
