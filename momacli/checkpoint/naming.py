"""Names of tasks, which input is the base, and where the output goes."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from momacli.checkpoint.card import CARD, is_card
from momacli.checkpoint.description import COMPANIONS, CONFIG
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import read_header
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG
from momacli.checkpoint.provenance import KEY, is_task_name
from momacli.checkpoint.reader import Checkpoint, task_name
from momacli.checkpoint.sentence_transformers import FILES as SENTENCE_FILES
from momacli.checkpoint.source import kind_of
from momacli.checkpoint.weight_files import ADAPTER_CONFIG, INDEX, is_model_folder
from momacli.errors import CheckpointError, ConflictError, MomaError, OutputError, UsageError

_DESCRIBING = (CONFIG, OPEN_CLIP_CONFIG, ADAPTER_CONFIG, INDEX)
"""Files that moma writes beside weights, but for those that it copies."""

BASE_NAMES = ("base", "pretrained", "zeroshot")
"""Names by which an input is taken for the base; in use in public checkpoint folders."""


@dataclass(frozen=True)
class Named:
    """An input path and the task it stands for."""

    name: str
    path: Path
    opened: Checkpoint | None = None  # where it is open already, or nowhere on disk


def named_inputs(inputs: Sequence[str | Path]) -> list[Named]:
    """Read "PATH" or "NAME=PATH".

    Raises CheckpointError for paths that do not exist, ConflictError for names or paths given
    twice, UsageError for a name that cannot be a task's and for a folder of checkpoints.
    """
    named = [named_input(item) for item in inputs]
    for item in named:
        check_name(item)
    absent = [str(item.path) for item in named if not os.path.lexists(item.path)]
    if absent:
        raise CheckpointError(
            f"{absent[0]} does not exist"
            if len(absent) == 1
            else f"{len(absent)} of the {len(named)} inputs do not exist",
            details=absent if len(absent) > 1 else [],
            hint="check the path and its spelling",
        )
    for item in named:
        if inner := _checkpoints_in(item.path):
            raise UsageError(
                f"{item.path} is a folder of {len(inner)} checkpoints, expected one",
                hint=f"name them: {item.path / '*'}{inner[0].suffix}",
            )
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
    return Named(name, Path(path))


def _checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder that is none itself; empty where there are none or only one."""
    if not folder.is_dir() or is_model_folder(folder):
        return []
    inner = [item for item in sorted(folder.iterdir()) if item.suffix == ".safetensors"]
    if not inner:
        inner = sorted(item for item in folder.iterdir() if is_model_folder(item))
    return inner if len(inner) > 1 else []


def check_name(item: Named) -> None:
    """Raise UsageError for a name that cannot be a task's."""
    if not is_task_name(item.name):
        raise UsageError(
            f"'{shown(item.name)}' cannot be the name of a task ({shown(str(item.path))})",
            hint="give it another with NAME=PATH",
        )


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
        f"no base: no input is named {', '.join(BASE_NAMES[:-1])} or {BASE_NAMES[-1]}",
        hint="say which checkpoint the experts were fine-tuned from with --base PATH",
    )


def refuse_special(target: Path) -> None:
    """Refuse a device, a pipe or the like as an output. Raises OutputError."""
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OutputError(
            f"the output {target} is {kind_of(target.stat().st_mode)}, neither a file nor a folder",
            hint="name a file or folder with -o; its name goes to stdout, for the next command",
        )


def choose_output(
    output: str | Path | None,
    default: str,
    *,
    inputs: Sequence[Path],
    force: bool,
    folder: bool | None = None,
) -> Path:
    """Where to write. Raises OutputError if that would lose an input or a stranger's file.

    What moma wrote is replaced; anything else only with `force`.

    folder: whether a folder is to be written, so that an existing file is not replaced by one
        or the other way round; None where the caller does not know yet.
    """
    target = Path(output if output is not None else default)
    place = os.path.realpath(target)
    if _holds(place, Path.cwd()):
        raise OutputError(
            f"the output {target} would replace the folder this runs in",
            hint="name a new file or folder with -o",
        )
    for item in inputs:
        if _holds(place, item):
            raise OutputError(
                f"the output {target} would overwrite the input {item}",
                hint="choose another place with -o, or leave that input out",
            )
    if not os.path.lexists(target):
        return target
    refuse_special(target)
    if folder is not None and target.is_dir() != folder:
        found, wanted = ("a folder", "a file") if target.is_dir() else ("a file", "a folder")
        raise OutputError(
            f"the output {target} is {found}, where {wanted} is to be written",
            hint="choose another place with -o: a name in .safetensors is a file, others folders",
        )
    foreign = list(islice(_not_of_moma(target), 4))
    if foreign and not force:
        raise OutputError(
            f"{target} exists and moma did not write it",
            details=[shown(str(path)) for path in foreign[:3]] + ["…"][: len(foreign) - 3]
            if target.is_dir()
            else [],
            hint="choose another place with -o, or replace all of it with --force",
        )
    return target


def _holds(place: str, path: Path) -> bool:
    """Whether `path` is the real path `place` or lies within it."""
    other = os.path.realpath(path)
    return other == place or other.startswith(place.rstrip(os.sep) + os.sep)


def _not_of_moma(target: Path) -> Iterator[Path]:
    """Yield what replacing an output would lose that moma did not write.

    moma writes weights with a recipe, and beside them what describes a model.
    """
    if not target.is_dir():
        if not _has_recipe(target):
            yield target
        return
    weights = 0
    for parent, folders, names in os.walk(target):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if _has_recipe(path):
                weights += 1
            elif name == CARD and is_card(path):
                continue
            elif name not in (*_DESCRIBING, *COMPANIONS, *SENTENCE_FILES):
                yield path
    if not weights and any(target.iterdir()):
        yield target


def _has_recipe(file: Path) -> bool:
    if file.suffix != ".safetensors":
        return False
    try:
        return KEY in read_header(file).metadata
    except MomaError:
        return False
