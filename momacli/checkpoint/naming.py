"""Names of tasks, which input is the base, and where the output goes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.header import read_header, shown
from momacli.checkpoint.provenance import KEY
from momacli.checkpoint.reader import task_name, weight_files
from momacli.errors import ConflictError, MomaError, OutputError, UsageError

BASE_NAMES = ("base", "pretrained", "zeroshot")
"""Names by which an input is taken for the base; in use in public checkpoint folders."""


@dataclass(frozen=True)
class Named:
    """An input path and the task it stands for."""

    name: str
    path: Path


def named_inputs(inputs: Sequence[str | Path]) -> list[Named]:
    """Read "PATH" or "NAME=PATH". Raises UsageError, ConflictError for names or paths twice."""
    named = [named_input(item) for item in inputs]
    twice = [name for name, count in Counter(item.name for item in named).items() if count > 1]
    if twice:
        raise ConflictError(
            "several inputs have the same name",
            details=[str(item.path) for item in named if item.name in twice],
            hint="give each a name of its own with NAME=PATH",
        )
    places = Counter(os.path.realpath(item.path) for item in named)
    same = [str(item.path) for item in named if places[os.path.realpath(item.path)] > 1]
    if same:
        raise ConflictError("the same checkpoint is given twice", details=same)
    return named


def named_input(item: str | Path) -> Named:
    """Read one "PATH" or "NAME=PATH"; a path that exists is a path, even with "=" in it."""
    text = str(item)
    if "=" in text and not Path(text).exists():
        name, path = text.split("=", 1)
    else:
        name, path = task_name(Path(text)), text
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UsageError(f"{shown(text)}: {shown(name)!r} cannot be the name of a task")
    return Named(name, Path(path))


def find_base(named: Sequence[Named], base: str | Path | None) -> tuple[Named, list[Named]]:
    """Split the inputs into the base and the experts. Raises UsageError if there is no base."""
    if base is not None:
        given = named_input(base)
        place = os.path.realpath(given.path)
        return given, [item for item in named if os.path.realpath(item.path) != place]
    found = [item for item in named if item.name in BASE_NAMES]
    if len(found) == 1:
        return found[0], [item for item in named if item is not found[0]]
    if found:
        raise UsageError(
            "more than one input could be the base: " + ", ".join(item.name for item in found),
            hint="say which with --base",
        )
    raise UsageError(
        f"no base: none of the {len(named)} inputs is named {' or '.join(BASE_NAMES)}",
        hint="say which checkpoint the experts were fine-tuned from with --base PATH",
    )


def choose_output(
    output: str | Path | None, default: str, *, inputs: Sequence[Path], force: bool
) -> Path:
    """Where to write. Raises OutputError if that would lose an input or a stranger's file.

    What moma wrote is replaced; anything else only with `force`.
    """
    target = Path(output if output is not None else default)
    place = os.path.realpath(target)
    for item in inputs:
        other = os.path.realpath(item)
        if place == other or other.startswith(place + os.sep):
            raise OutputError(
                f"the output {target} would overwrite the input {item}",
                hint="choose another place with -o",
            )
    if os.path.lexists(target) and not force and not _written_by_moma(target):
        raise OutputError(
            f"{target} exists and was not written by moma",
            hint="choose another place with -o, or replace it with --force",
        )
    return target


def _written_by_moma(target: Path) -> bool:
    """Whether an output carries a recipe: a file itself, a folder in its weights."""
    if not target.is_dir():
        files = [target]
    else:
        folders = [target, *sorted(item for item in target.iterdir() if item.is_dir())]
        files = []
        for folder in folders:
            try:
                files += weight_files(folder)[:1]
            except MomaError:
                files += sorted(folder.glob("*.safetensors"))[:1]
        if not files:
            return not any(target.iterdir())
    try:
        return all(KEY in read_header(file).metadata for file in files)
    except MomaError:
        return False
