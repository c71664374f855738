"""Where samples lie: one folder or file per task, and within a labeled folder, one per class."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from momacli.data.leaving_out import LeaveOut, refuse
from momacli.data.tables import is_table
from momacli.errors import DataError

Data = str | Path | Sequence[str | Path]
"""Where samples are: a folder, or "TASK=PATH", or several of these."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


def task_sources(data: Data, tasks: Sequence[str]) -> dict[str, Path]:
    """Find each task's samples: a folder of its name, or a text file such as TASK.jsonl.

    data: "TASK=PATH" for single tasks, or folders that hold those of several. With a single
        task, the path itself may be its samples.

    Raises DataError listing the tasks without samples and the samples without a task.
    """
    given = [data] if isinstance(data, (str, Path)) else list(data)
    named: dict[str, Path] = {}
    found: dict[str, Path] = {}
    roots: list[Path] = []
    for item in given:
        name, _, place = str(item).partition("=")
        if place and not Path(item).exists():
            named[name] = Path(place)
        else:
            roots.append(Path(item))
    for root in [*named.values(), *roots]:
        if not root.exists():
            raise DataError(f"{root} does not exist", hint="check the path and its spelling")
    for root in roots:
        for path in sorted(root.iterdir()) if root.is_dir() else [root]:
            if not path.name.startswith(".") and (path.is_dir() or is_table(path)):
                name = path.name if path.is_dir() else path.name.split(".", 1)[0]
                found.setdefault(name, path)
    sources = found | named
    missing = [task for task in tasks if task not in sources]
    unknown = [name for name in named if name not in tasks]
    if not missing and not unknown:
        return {task: sources[task] for task in tasks}
    if len(tasks) == 1 and len(roots) == 1 and not unknown and _holds_samples(roots[0]):
        return {tasks[0]: roots[0]}
    extra = sorted(name for name in sources if name not in tasks)
    where = ", ".join(str(root) for root in roots) or "--data"
    raise DataError(
        f"{where} has no samples for {len(missing)} of {len(tasks)} tasks",
        details=[f"{task}: no folder or file" for task in missing]
        + [f"{name}: no task of this name" for name in extra],
        hint="name the folders or files like the tasks, or say --data TASK=PATH for each",
    )


def _holds_samples(path: Path) -> bool:
    if path.is_file():
        return is_table(path)
    return any(_image_files(path, refuse)) or any(is_table(file) for file in path.iterdir())


def image_files(folder: Path, *, leave_out: LeaveOut = refuse) -> list[Path]:
    """All image files below a folder, sorted by path. Raises DataError if there are none.

    leave_out: told of each sub-folder that cannot be listed; by default it refuses.
    """
    places = sorted(_image_files(folder, leave_out), key=_by_parts)
    files = [Path(place) for place in places]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} holds no image", hint=f"images are files with {suffixes}")
    return files


def _by_parts(place: str) -> str:
    """The order of paths, by which all of a folder comes before its namesakes with an ending."""
    return place.replace(os.sep, "\0")


def _is_image(name: str) -> bool:
    stem, dot, suffix = name.lower().rpartition(".")
    return bool(stem) and dot + suffix in IMAGE_SUFFIXES


def _image_files(folder: Path, leave_out: LeaveOut) -> Iterable[str]:
    """Image files, following links to folders but never into a folder that is being walked."""
    pending = [(os.fspath(folder), frozenset({os.path.realpath(folder)}))]
    while pending:
        current, above = pending.pop()
        try:
            found = os.scandir(current)
        except OSError as error:
            leave_out(f"{current} cannot be listed: {error.strerror}")
            continue
        with found:
            for entry in found:
                if entry.is_dir():
                    place = os.path.realpath(entry.path)
                    if place not in above and not entry.name.startswith("."):
                        pending.append((entry.path, above | {place}))
                elif _is_image(entry.name) and entry.is_file():
                    yield entry.path


def labels_of(folder: Path, files: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Class index of each file by its class folder. Raises DataError for unknown class folders.

    A class folder bears the class's name, or its number.
    """
    names = [file.relative_to(folder).parts[0] for file in files]
    return class_numbers(names, classes, f"{folder} has class folders")


def class_numbers(
    names: Sequence[str | int],
    classes: Sequence[str],
    whose: str = "there are labels",
    *,
    first: int = 0,
) -> list[int]:
    """Index of each class, given by its name or its number. Raises DataError for others.

    first: the number of the first class.
    """
    table = {str(first + number): number for number in range(len(classes))}
    table |= {name: number for number, name in enumerate(classes)}
    unknown = sorted({str(name) for name in names if str(name) not in table})
    if unknown:
        raise DataError(
            f"{whose} that the model's id2label does not know",
            details=unknown[:20],
            hint=f"its classes are {', '.join(classes[:20])}",
        )
    return [table[str(name)] for name in names]


def count_from_one(names: Iterable[str | int], classes: Sequence[str]) -> bool:
    """Whether labels are the numbers 1 to the number of classes, both ends among them.

    So the files of AG News, Yelp and others have them; counted from 0, the last would be none.
    """
    found = {str(name) for name in names} - set(classes)
    ends = {"1", str(len(classes))}
    return ends <= found <= {str(number) for number in range(1, len(classes) + 1)}
