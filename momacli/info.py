"""What a checkpoint holds and where it comes from, or in what two of them differ."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momacli.adapters.config import config_file, read_adapter_config
from momacli.alignment.beside import adapter_file, has_adapters
from momacli.checkpoint.differences import Difference, find_differences, named_tensors
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.provenance import Input, Recipe, decode_recipe, input_path
from momacli.checkpoint.reader import Checkpoint, is_adapter
from momacli.errors import CheckpointError
from momacli.progress import Listener, ignore

_DEEPEST = 8
"""Generations of inputs that are followed; a record may have been made to lead in circles."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, as its header has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Module:
    """The tensors of one layer, or of one module outside the layers."""

    name: str
    tensors: tuple[TensorInfo, ...]
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Origin:
    """What something was made of, as far back as the files are there to tell."""

    name: str
    path: Path
    files: dict[str, str]  # SHA-256 by file, as recorded; not checked here
    found: bool
    command: str | None  # what made it, where moma did
    parameters: dict[str, Any]
    inputs: tuple["Origin", ...]


@dataclass(frozen=True)
class Added:
    """What lies beside a model and is needed with it."""

    path: Path
    method: str
    parameters: int


@dataclass(frozen=True)
class Info:
    """What a checkpoint holds, from its headers alone."""

    path: Path
    tasks: tuple[str, ...]  # of an output of several
    modules: tuple[Module, ...]  # in the order of the layers
    parameters: int
    nbytes: int
    origin: Origin
    adapter: str | None = None  # what kind of adapter it is and of which base, by its own word
    added: Added | None = None  # adapters that moma align put behind it


@dataclass(frozen=True)
class ModuleDifference:
    """The tensors of one layer, or of one module outside the layers, that differ."""

    name: str
    tensors: int  # of the module, in either of the two
    differences: tuple[Difference, ...]

    @property
    def changed(self) -> int | None:
        """Values that are not the same; None where no tensor is in both, in one shape."""
        counts = [one.changed for one in self.differences if one.changed is not None]
        return sum(counts) if counts else None

    @property
    def largest(self) -> Difference | None:
        """The tensor that moved most, relative to its norm; None where none tells how far."""
        measured = [one for one in self.differences if one.relative is not None]
        return max(measured, key=_how_far, default=None)


@dataclass(frozen=True)
class Comparison:
    """All tensors that differ, module by module, and how many do not."""

    first: Path
    second: Path
    equal: int
    modules: tuple[ModuleDifference, ...]  # in the order of the layers, with differences alone

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Those of all modules."""
        return tuple(one for module in self.modules for one in module.differences)


def info(path: str | Path) -> Info:
    """Describe a file or folder; reads no tensor. Raises CheckpointError."""
    place = Path(path)
    with MultiTask.open(place) as opened:
        recipe, tasks = opened.recipe, tuple(opened.tasks)
        adapter = next(map(_adapter, filter(is_adapter, opened.checkpoints)), None)
        entries = {name: stored.entry for name, stored in named_tensors(opened).items()}
    modules = [
        Module(
            name,
            tuple(
                TensorInfo(key, entries[key].dtype, tuple(entries[key].shape), entries[key].nbytes)
                for key in keys
            ),
            sum(entries[key].elements for key in keys),
            sum(entries[key].nbytes for key in keys),
        )
        for name, keys in _by_module(entries).items()
    ]
    return Info(
        path=place,
        tasks=tasks if recipe is not None and recipe.tasks else (),
        modules=tuple(modules),
        parameters=sum(module.parameters for module in modules),
        nbytes=sum(module.nbytes for module in modules),
        origin=_origin(place.name, place, {}, recipe, _DEEPEST),
        adapter=adapter,
        added=_added(place, recipe),
    )


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of tensors by the layer or module they are in, in the order of the layers."""
    from momacli.statistics.geometry import layer_of, natural_order

    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layer_of(name), []).append(name)
    return {module: groups[module] for module in sorted(groups, key=natural_order)}


def _adapter(checkpoint: Checkpoint) -> str:
    config = read_adapter_config(config_file(checkpoint))
    return f"{config} for {shown(config.base_name)}" if config.base_name else str(config)


def _added(place: Path, recipe: Recipe | None) -> Added | None:
    """Count what an alignment added; None where it added nothing, or its file is gone."""
    path = adapter_file(place)
    if recipe is None or not has_adapters(recipe) or not path.is_file():
        return None
    with Checkpoint.open(path) as opened:
        count = sum(entry.elements for entry in opened.entries.values())
    return Added(path, str(recipe.parameters["method"]), count)


def _origin(
    name: str, path: Path, files: dict[str, str], recipe: Recipe | None, depth: int
) -> Origin:
    """Follow a record to the inputs it names, and theirs."""
    inputs: list[Origin] = []
    if recipe is not None and depth:
        named = [recipe.merged] if recipe.merged else [recipe.base, *recipe.inputs]
        output = _output_of(path, recipe)
        inputs = [_followed(item, output, depth - 1) for item in named if item is not None]
    return Origin(
        name,
        path,
        files,
        path.exists(),
        None if recipe is None else recipe.command,
        {} if recipe is None else dict(recipe.parameters),
        tuple(inputs),
    )


def _output_of(path: Path, recipe: Recipe) -> Path:
    """What a record is of, from where its inputs are found: of a task's folder, that around it.

    A model of one task alone is an output itself, made by a method that takes a task.
    """
    of_many = path.is_dir() and path.name in recipe.tasks and "task" not in recipe.parameters
    return path.resolve().parent if of_many else path


def _followed(item: Input, output: Path, depth: int) -> Origin:
    place = input_path(item, output)
    recipe = None
    try:
        with MultiTask.open(place) as opened:
            recipe = opened.recipe or decode_recipe(opened.checkpoints[0].metadata, place)
    except CheckpointError:  # gone or damaged since: the record itself still stands
        pass
    return _origin(item.name, place, dict(item.files), recipe, depth)


def compare(first: str | Path, second: str | Path, *, listener: Listener = ignore) -> Comparison:
    """Compare two files or folders, of one task or several, tensor by tensor, bit by bit.

    Raises CheckpointError.
    """
    with MultiTask.open(Path(first)) as one, MultiTask.open(Path(second)) as other:
        a, b = named_tensors(one), named_tensors(other)
        found = {difference.name: difference for difference in find_differences(a, b, listener)}
    modules = [
        ModuleDifference(name, len(keys), tuple(found[key] for key in keys if key in found))
        for name, keys in _by_module({**a, **b}).items()
    ]
    return Comparison(
        Path(first),
        Path(second),
        len(a.keys() | b.keys()) - len(found),
        tuple(module for module in modules if module.differences),
    )


def _how_far(difference: Difference) -> float:
    """|second - first| / |first|, what is no number counting as furthest."""
    relative = difference.relative or 0.0
    return math.inf if math.isnan(relative) else relative
