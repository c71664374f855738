"""Where an output comes from: recorded in its metadata, checked before it is relied on."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from momacli import __version__
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.scanner import unique
from momacli.errors import CheckpointError, ConflictError

KEY = "moma"
"""Metadata key of the recipe."""

UNKNOWN_DIGEST = "0" * 64
"""Stands for a SHA-256 that is only known when the input has been read."""

_DIGEST = re.compile("[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Input:
    """One input of a run: its name, its path relative to the output, its files' SHA-256."""

    name: str
    path: str
    files: Mapping[str, str]
    task_vector: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that made an output, enough to make it again."""

    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: Input | None = None
    inputs: Sequence[Input] = ()
    heads: Sequence[str] = ()
    tasks: Sequence[str] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # task -> config.json
    merged: Input | None = None  # what an alignment was fitted to
    alignment: str | None = None  # SHA-256 of the file of the one that was folded into it
    tool: str = f"moma {__version__}"

    def encode(self) -> str:
        """Encode as the JSON text of the metadata; ASCII, because a path need not be UTF-8."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def decode_recipe(metadata: Mapping[str, str], source: Path) -> Recipe | None:
    """Read the recipe out of a file's metadata, or None. Raises CheckpointError if it is odd."""
    if KEY not in metadata:
        return None
    try:
        return _recipe(json.loads(metadata[KEY], object_pairs_hook=unique))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{shown_path(source)}: its record of how it was made cannot be understood",
            hint="it was written by another version of moma, or changed by hand",
        ) from error


def _recipe(content: Mapping[str, Any]) -> Recipe:
    tasks, configs = _texts(content["tasks"]), _expect(dict, content["configs"])
    if not all(map(is_task_name, (*tasks, *configs))):
        raise ValueError("a task becomes a folder's name")
    return Recipe(
        command=_expect(str, content["command"]),
        parameters=_expect(dict, content["parameters"]),
        base=_input(content["base"]),
        inputs=tuple(filter(None, map(_input, _expect(list, content["inputs"])))),
        heads=_texts(content["heads"]),
        tasks=tasks,
        configs={task: _expect(dict, config) for task, config in configs.items()},
        merged=_input(content["merged"]),
        alignment=_digest(content["alignment"]),
        tool=_expect(str, content["tool"]),
    )


def _input(content: Mapping[str, Any] | None) -> Input | None:
    if content is None:
        return None
    files = _expect(dict, content["files"])
    if not files or not all(_DIGEST.fullmatch(_expect(str, digest)) for digest in files.values()):
        raise ValueError("an input without its digests")
    name, path = _expect(str, content["name"]), _expect(str, content["path"])
    return Input(name, path, files, _expect(bool, content["task_vector"]))


def _digest(value: object) -> str | None:
    if value is not None and not _DIGEST.fullmatch(_expect(str, value)):
        raise ValueError("no digest")
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_expect(str, item) for item in _expect(list, value))


def _expect(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def is_task_name(name: str) -> bool:
    """Whether a name can be a folder's and part of a tensor's name: UTF-8, visible, no path."""
    plain = name.isprintable() and not set(name) & set("/\\")
    return plain and bool(name.strip()) and not name.startswith(".")


def record_input(
    checkpoint: Checkpoint, output: Path, *, digests: bool, task_vector: bool = False
) -> Input:
    """Describe an input of `output`; without `digests`, placeholders of the same length."""
    files = dict.fromkeys(checkpoint.file_names, UNKNOWN_DIGEST)
    if digests:
        files = checkpoint.sha256()
    return Input(checkpoint.name, relative_path(checkpoint.path, output), files, task_vector)


def relative_path(path: Path, output: Path) -> str:
    """Where an input lies, seen from the folder of the output."""
    return Path(os.path.relpath(path.resolve(), output.resolve().parent)).as_posix()


def input_path(item: Input, output: Path) -> Path:
    """Where an input that the recipe of `output` names was."""
    return Path(os.path.normpath(output.resolve().parent / item.path))


def open_input(item: Input, output: Path) -> Checkpoint:
    """Open an input that the recipe of `output` names, where it was, with its head file if any.

    Raises CheckpointError.
    """
    try:
        opened = Checkpoint.open(input_path(item, output), name=item.name)
        return opened if set(item.files) <= set(opened.file_names) else with_head_file(opened)
    except CheckpointError as error:
        raise CheckpointError(
            f"{shown_path(output)} was made from {shown(item.name)}, which cannot be opened: "
            f"{error.message}",
            details=error.details,
            hint="put it back, or say where it is with NAME=PATH or --base",
        ) from error


def check_unchanged(item: Input, checkpoint: Checkpoint, output: Path) -> None:
    """Compare an input with the digests in the recipe. Raises ConflictError naming what changed."""
    found = checkpoint.sha256()
    changed = [
        f"{shown(name)}: expected {_sha(item.files.get(name))}, found {_sha(found.get(name))}"
        for name in sorted({*item.files, *found})
        if found.get(name) != item.files.get(name)
    ]
    if changed:
        raise ConflictError(
            f"{shown_path(checkpoint.path)} is not what {shown_path(output)} was made from",
            details=changed,
            hint="merge again from the present files, or bring the old ones back",
        )


def _sha(digest: str | None) -> str:
    return "no such file" if digest is None else f"SHA-256 {digest[:12]}…"
