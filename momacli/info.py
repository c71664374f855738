"""What a checkpoint holds and where it comes from, or in what two of them differ."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.adapters.config import config_file, read_adapter_config
from momacli.alignment.beside import adapter_file, has_adapters
from momacli.checkpoint.arrays import is_held
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.provenance import Input, Recipe, decode_recipe, input_path
from momacli.checkpoint.reader import Checkpoint, is_adapter, iterate_blocks
from momacli.errors import CheckpointError
from momacli.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20
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
class Difference:
    """In what one tensor differs between two checkpoints."""

    name: str
    kind: str  # "only in the first", "only in the second", "type or shape", "values"
    first: str | None  # type and shape
    second: str | None
    changed: int | None = None  # values that are not the same
    relative: float | None = None  # |second - first| / |first|


@dataclass(frozen=True)
class Comparison:
    """All tensors that differ, and how many do not."""

    first: Path
    second: Path
    equal: int
    differences: tuple[Difference, ...]


def info(path: str | Path) -> Info:
    """Describe a file or folder; reads no tensor. Raises CheckpointError."""
    from momacli.statistics.geometry import layer_of, natural_order

    place = Path(path)
    with MultiTask.open(place) as opened:
        recipe, tasks = opened.recipe, tuple(opened.tasks)
        adapter = next(map(_adapter, filter(is_adapter, opened.checkpoints)), None)
        entries: dict[str, TensorEntry] = {}
        seen = set()
        for checkpoint in opened.checkpoints:
            prefix = f"{checkpoint.name}/" if len(opened.checkpoints) > 1 else ""
            for key, entry in checkpoint.entries.items():
                if (where := checkpoint.place_of(key)) not in seen:
                    entries[key if key not in entries else prefix + key] = entry
                seen.add(where)
    groups: dict[str, list[TensorInfo]] = {}
    for name, entry in entries.items():
        found = TensorInfo(name, entry.dtype, tuple(entry.shape), entry.nbytes)
        groups.setdefault(layer_of(name), []).append(found)
    modules = [
        Module(
            name,
            tuple(groups[name]),
            sum(entries[one.name].elements for one in groups[name]),
            sum(one.nbytes for one in groups[name]),
        )
        for name in sorted(groups, key=natural_order)
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
        inputs = [_followed(item, path, depth - 1) for item in named if item is not None]
    return Origin(
        name,
        path,
        files,
        path.exists(),
        None if recipe is None else recipe.command,
        {} if recipe is None else dict(recipe.parameters),
        tuple(inputs),
    )


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
    """Compare two files or folders tensor by tensor, bit by bit. Raises CheckpointError."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(Checkpoint.open(Path(path))) for path in (first, second))
        differences = tuple(_differences(a, b, listener))
        return Comparison(
            Path(first),
            Path(second),
            len(a.entries.keys() | b.entries.keys()) - len(differences),
            differences,
        )


def _differences(a: Checkpoint, b: Checkpoint, listener: Listener) -> Iterator[Difference]:
    names = list(dict.fromkeys([*a.entries, *b.entries]))
    for number, name in enumerate(names, start=1):
        x, y = a.entries.get(name), b.entries.get(name)
        if x is None or y is None:
            kind = "only in the second" if x is None else "only in the first"
            yield Difference(
                name, kind, None if x is None else str(x), None if y is None else str(y)
            )
        elif (x.dtype, tuple(x.shape)) != (y.dtype, tuple(y.shape)):
            yield Difference(name, "type or shape", str(x), str(y))
        else:
            changed, relative = _change(a, b, name, x)
            if changed:
                yield Difference(name, "values", str(x), str(y), changed, relative)
        listener(Progress("comparing", number, len(names), "tensors"))


def _change(
    a: Checkpoint, b: Checkpoint, name: str, entry: TensorEntry
) -> tuple[int, float | None]:
    """How many values have other bits, and |b - a| / |a|, where numbers are to be had."""
    if not is_held(entry.dtype):
        return int((a.read(name) != b.read(name)).sum()), None
    changed, moved, length = 0, 0.0, 0.0
    for start, stop in iterate_blocks(entry.elements, _BLOCK):
        x, y = a.read_range(name, start, stop), b.read_range(name, start, stop)
        changed += _other_bits(x, y)
        if x.is_floating_point():
            moved += float((y.double() - x.double()).square().sum())
            length += float(x.double().square().sum())
    return changed, (moved / length) ** 0.5 if length else None


def _other_bits(x: "Tensor", y: "Tensor") -> int:
    import torch

    width = x.element_size()
    same = x.view(torch.uint8) == y.view(torch.uint8)
    return int((~same.reshape(-1, width).all(dim=1)).sum()) if same.numel() else 0
