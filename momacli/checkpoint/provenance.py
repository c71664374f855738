"""Where an output comes from: recorded in its metadata, checked before it is relied on."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from momacli import __version__
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import CheckpointError, ConflictError

KEY = "moma"
"""Metadata key of the recipe."""

UNKNOWN_DIGEST = "0" * 64
"""Stands for a SHA-256 that is only known when the input has been read."""


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
    tool: str = f"moma {__version__}"

    def encode(self) -> str:
        """Encode as the JSON text of the metadata; ASCII, because a path need not be UTF-8."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def decode_recipe(metadata: Mapping[str, str], source: Path) -> Recipe | None:
    """Read the recipe out of a file's metadata, or None. Raises CheckpointError if it is odd."""
    if KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[KEY])
        base = content["base"]
        return Recipe(
            command=str(content["command"]),
            parameters=dict(content["parameters"]),
            base=None if base is None else _input(base),
            inputs=tuple(_input(item) for item in content["inputs"]),
            heads=tuple(map(str, content["heads"])),
            tasks=tuple(map(str, content["tasks"])),
            configs={task: dict(config) for task, config in content["configs"].items()},
            merged=None if content["merged"] is None else _input(content["merged"]),
            tool=str(content["tool"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: its record of how it was made cannot be understood",
            hint="it was written by another version of moma, or changed by hand",
        ) from error


def _input(content: Mapping[str, Any]) -> Input:
    files = {str(name): str(digest) for name, digest in content["files"].items()}
    name, path = str(content["name"]), str(content["path"])
    return Input(name, path, files, bool(content["task_vector"]))


def record_input(
    checkpoint: Checkpoint, output: Path, *, digests: bool, task_vector: bool = False
) -> Input:
    """Describe an input of `output`; without `digests`, placeholders of the same length."""
    files = {file.path.name: UNKNOWN_DIGEST for file in checkpoint.files}
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
    """Open an input that the recipe of `output` names, where it was. Raises CheckpointError."""
    try:
        return Checkpoint.open(input_path(item, output), name=item.name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{output} was made from {item.name}, which cannot be opened: {error.message}",
            details=error.details,
            hint="put it back, or say where it is with NAME=PATH or --base",
        ) from error


def check_unchanged(item: Input, checkpoint: Checkpoint, output: Path) -> None:
    """Compare an input with the digests in the recipe. Raises ConflictError naming what changed."""
    found = checkpoint.sha256()
    changed = [
        f"{name}: expected SHA-256 {digest[:12]}…, found {found.get(name, 'no such file')[:12]}…"
        for name, digest in item.files.items()
        if found.get(name) != digest
    ]
    if changed:
        raise ConflictError(
            f"{checkpoint.path} is not what {output} was made from",
            details=changed,
            hint="merge again from the present files, or bring the old ones back",
        )
