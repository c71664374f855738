"""A model of several tasks on disk: one encoder, one head a task.

As a file: encoder tensors under their own names, heads under `heads.<task>.<name>`.
As a folder: one ordinary model folder a task, whose encoder shards are one file on disk.
A folder of experts reads the same way, only that each has an encoder of its own.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from momacli.checkpoint.description import CONFIG, Description, describe
from momacli.checkpoint.feature_rule import chosen_rule, with_rule
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.naming import BASE_NAMES
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from momacli.checkpoint.plan import TASK_HEADS
from momacli.checkpoint.provenance import Recipe, decode_recipe
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.weight_files import INDEX, SINGLE
from momacli.errors import CheckpointError

ENCODER_SHARD = "model-00001-of-00002.safetensors"
HEAD_SHARD = "model-00002-of-00002.safetensors"


@dataclass(frozen=True)
class TaskModel:
    """One task's whole model: each of its tensors, by its own name, and where it is stored."""

    task: str
    checkpoint: Checkpoint
    keys: Mapping[str, str]  # own name -> name in the checkpoint
    description: Description | None

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """Header entries by own name."""
        entries = self.checkpoint.entries
        return {own: entries[key] for own, key in self.keys.items()}


@dataclass(frozen=True)
class MultiTask:
    """The models of several tasks, and the recipe they were made by, if moma made them."""

    path: Path
    tasks: Mapping[str, TaskModel]
    recipe: Recipe | None
    shared_encoder: bool
    checkpoints: Sequence[Checkpoint]

    @classmethod
    def open(cls, path: Path, *, config: Path | None = None) -> "MultiTask":
        """Open a file or folder of one task or of several. Raises CheckpointError."""
        with ExitStack() as stack:
            whole = any((path / name).is_file() for name in (CONFIG, OPEN_CLIP_CONFIG))
            if path.is_dir() and not whole and _model_folders(path):
                opened = []
                for folder in _model_folders(path):
                    model = stack.enter_context(Checkpoint.open(folder))
                    opened.append(stack.enter_context(with_head_file(model)))
                result = _from_folders(path, opened, config)
            else:
                model = stack.enter_context(Checkpoint.open(path))
                checkpoint = stack.enter_context(with_head_file(model))
                result = _from_one(path, checkpoint, config)
            stack.pop_all()
            return result

    def with_features(self, pooling: str | None, module: str | None) -> "MultiTask":
        """The same with what the user said of features; None leaves it to the model.

        Raises ConflictError where the model was aligned with other features.
        """
        if pooling is None and module is None:
            return self
        tasks = {}
        for task, one in self.tasks.items():
            assert one.description is not None
            config = one.description.config
            rule = chosen_rule(config, pooling, module, str(self.path))
            described = replace(one.description, config=with_rule(config, rule))
            tasks[task] = replace(one, description=described)
        return replace(self, tasks=tasks)

    def close(self) -> None:
        """Close all files."""
        for checkpoint in self.checkpoints:
            checkpoint.close()

    def __enter__(self) -> "MultiTask":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _model_folders(path: Path) -> list[Path]:
    """Sub-folders that are a task's model folders, in the order of their names."""
    weights = (SINGLE, INDEX, OPEN_CLIP_WEIGHTS)
    folders = sorted(
        folder
        for folder in path.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and any((folder / name).is_file() for name in weights)
    )
    return [folder for folder in folders if folder.name not in BASE_NAMES] or folders


def _from_folders(path: Path, opened: list[Checkpoint], config: Path | None) -> MultiTask:
    recipe = decode_recipe(opened[0].metadata, path)
    tasks = {
        checkpoint.name: TaskModel(
            checkpoint.name,
            checkpoint,
            {key: key for key in checkpoint.entries},
            describe(checkpoint, config),
        )
        for checkpoint in opened
    }
    if recipe is not None and (missing := [task for task in recipe.tasks if task not in tasks]):
        raise CheckpointError(
            f"{path} lacks the folders of tasks it was written with", details=missing
        )
    if _only_task(recipe) and len(tasks) > 1:
        recipe = None  # each is an output of its own
    return MultiTask(path, tasks, recipe, recipe is not None, opened)


def _from_one(path: Path, checkpoint: Checkpoint, config: Path | None) -> MultiTask:
    recipe = decode_recipe(checkpoint.metadata, path)
    found = describe(checkpoint, config)
    if recipe is None or not recipe.tasks or checkpoint.is_folder:
        keys = {key: key for key in checkpoint.entries}
        task = _only_task(recipe) or checkpoint.name
        one = TaskModel(task, checkpoint, keys, found)
        return MultiTask(path, {task: one}, recipe, recipe is not None, [checkpoint])
    encoder = {key: key for key in checkpoint.entries if not key.startswith(TASK_HEADS)}
    tasks = {}
    for task in recipe.tasks:
        prefix = f"{TASK_HEADS}{task}."
        heads = {own: prefix + own for own in recipe.heads if prefix + own in checkpoint.entries}
        own = found
        if config is None and task in recipe.configs:
            own = Description(recipe.configs[task], _companions(path, recipe, task))
        tasks[task] = TaskModel(task, checkpoint, encoder | heads, own)
    return MultiTask(path, tasks, recipe, True, [checkpoint])


def _only_task(recipe: Recipe | None) -> str | None:
    """The task that an output is of alone, by the nature of the method that made it."""
    if recipe is None or "task" not in recipe.parameters or len(recipe.tasks) != 1:
        return None
    return recipe.tasks[0]


def _companions(path: Path, recipe: Recipe, task: str) -> Path | None:
    """The folder with the processor files of a task: beside the file, its expert's, the base's."""
    inputs = [item for item in recipe.inputs if item.name == task]
    places = [path.parent]
    for item in [*inputs, *([recipe.base] if recipe.base else [])]:
        checkpoint = path.resolve().parent / item.path
        places += [checkpoint, checkpoint.parent]
    return next((folder for folder in places if Description({}, folder).companions), None)
