"""What an output says of itself, compared with what it should say: all but its tensors.

That is the metadata of its weights and, in a folder, the files that programs load with them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from momacli.checkpoint.card import CARD, is_card
from momacli.checkpoint.description import COMPANIONS, CONFIG
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.head_files import class_metadata
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.multitask_writer import TaskPart, beside_weights
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG
from momacli.checkpoint.provenance import KEY, Recipe
from momacli.checkpoint.sentence_transformers import FILES as SENTENCE_FILES
from momacli.checkpoint.source import Source
from momacli.checkpoint.weight_files import INDEX

_LOADED = frozenset((CONFIG, OPEN_CLIP_CONFIG, INDEX, *COMPANIONS, *SENTENCE_FILES))
"""Files that programs load with a model of their own accord."""


def find_difference(made: MultiTask, recipe: Recipe, parts: Sequence[TaskPart]) -> str | None:
    """The first thing that is not as it should be, if there is any: where, found and expected.

    recipe: the one that all files should have.
    parts: the tasks' own, as the output would be written of them.
    """
    for folder, part in _places(made, parts or [TaskPart("", [], None)]):
        classes = class_metadata(part.description.config if part.description else None)
        for model in made.tasks.values():
            if model.checkpoint.path != folder:
                continue
            if difference := _in_metadata(model, recipe.encode(), classes):
                return difference
    if not made.path.is_dir():
        return None
    expected = _beside(made, parts)
    for path, content in sorted(expected.items()):
        if difference := _in_file(made.path, path, content):
            return difference
    for path in _strangers(made, recipe, expected):
        if path.name in _LOADED:
            return f"{shown_path(path.relative_to(made.path))}: not made by its recipe"
    return None


def other_files(made: MultiTask, recipe: Recipe, parts: Sequence[TaskPart]) -> list[str]:
    """The files in an output's folder that are none of its own."""
    if not made.path.is_dir():
        return []
    found = _strangers(made, recipe, _beside(made, parts))
    return [shown_path(path.relative_to(made.path)) for path in found]


def _places(made: MultiTask, parts: Sequence[TaskPart]) -> list[tuple[Path, TaskPart]]:
    """The folder of each part: that of its task, or the output itself if it is of one model."""
    whole = any(model.checkpoint.path == made.path for model in made.tasks.values())
    return [(made.path if whole else made.path / part.task, part) for part in parts]


def _beside(made: MultiTask, parts: Sequence[TaskPart]) -> dict[Path, bytes | Path]:
    return {
        folder / name: content
        for folder, part in _places(made, parts)
        for name, content in beside_weights(part).items()
    }


def _strangers(made: MultiTask, recipe: Recipe, expected: Mapping[Path, object]) -> list[Path]:
    own = {file.path for checkpoint in made.checkpoints for file in checkpoint.files}
    own |= {path.parent / INDEX for path in own}  # it was compared with its shards
    if recipe.alignment is not None:
        names = ("alignment.safetensors", "surgery.safetensors")  # its SHA-256 is recorded
        own |= {made.path / name for name in names}
    found = sorted(path for path in made.path.rglob("*") if path.is_symlink() or not path.is_dir())
    return [
        path for path in found if path not in own and path not in expected and not _is_card(path)
    ]


def _is_card(path: Path) -> bool:
    return path.name == CARD and is_card(path)


def _in_metadata(model: TaskModel, recipe: str, classes: Mapping[str, str]) -> str | None:
    for file in model.checkpoint.files:
        name, found = shown_path(Path(file.path.name)), dict(file.header.metadata)
        own = found.pop(KEY, "")
        if own != recipe:
            return f"the recipe in {name}: {_how(own.encode(), recipe.encode())}"
        found.pop("format", None)
        if found and found != classes:
            return f"the metadata of {name}: {shown(min(found))} is not as its recipe has it"
    return None


def _in_file(root: Path, path: Path, content: bytes | Path) -> str | None:
    name = shown_path(path.relative_to(root))
    if not path.is_file():
        return f"{name}: missing"
    expected = _content(content) if isinstance(content, Path) else content
    found = _content(path)
    return None if found == expected else f"{name}: {_how(found, expected)}"


def _content(path: Path) -> bytes:
    with Source(path) as source:
        return source.read(source.size, 0)


def _how(found: bytes, expected: bytes) -> str:
    """How two files differ: where both are JSON objects, in which of their members."""
    try:
        one, other = json.loads(found), json.loads(expected)
        keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    except (ValueError, TypeError, AttributeError, RecursionError):
        keys = []
    if not keys:
        return "not what its inputs make of it"
    was, wanted = (json.dumps(item.get(keys[0])) for item in (one, other))
    return f"{shown(keys[0])} is {shown(was, 40)}, expected {shown(wanted, 40)}"
