"""Data folders: one sub-folder per task, and within a labeled one, one per class."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from momacli.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


def task_folders(data: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """Find each task's folder by its name.

    With a single task, `data` itself may hold the samples. Raises DataError listing the tasks
    without a folder and the folders without a task.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder", hint="give a folder with one sub-folder a task")
    found = {entry.name: entry for entry in sorted(data.iterdir()) if entry.is_dir()}
    missing = [task for task in tasks if task not in found]
    if not missing:
        return {task: found[task] for task in tasks}
    if len(tasks) == 1 and any(_image_files(data)):
        return {tasks[0]: data}
    extra = sorted(name for name in found if name not in tasks and not name.startswith("."))
    raise DataError(
        f"{data} has no folder for {len(missing)} of {len(tasks)} tasks",
        details=[f"{task}: no folder" for task in missing]
        + [f"{name}/: no task of this name" for name in extra],
        hint="name the sub-folders like the tasks, or the tasks like the folders with NAME=PATH",
    )


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path. Raises DataError if there are none."""
    files = sorted(_image_files(folder))
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} holds no image", hint=f"images are files with {suffixes}")
    return files


def _image_files(folder: Path) -> Iterable[Path]:
    """Image files, following links to folders but never into a folder that is being walked."""
    pending = [(folder, frozenset({os.path.realpath(folder)}))]
    while pending:
        current, above = pending.pop()
        with os.scandir(current) as found:
            entries = list(found)
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                place = os.path.realpath(entry.path)
                if place not in above and not entry.name.startswith("."):
                    pending.append((path, above | {place}))
            elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                yield path


def labels_of(folder: Path, files: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Class index of each file by its class folder. Raises DataError for unknown class folders.

    A class folder bears the class's name, or its number.
    """
    table = {str(number): number for number in range(len(classes))}
    table |= {name: number for number, name in enumerate(classes)}
    names = [file.relative_to(folder).parts[0] for file in files]
    unknown = sorted({name for name in names if name not in table})
    if unknown:
        raise DataError(
            f"{folder} has class folders that the model's id2label does not know",
            details=unknown[:20],
            hint=f"its classes are {', '.join(classes[:20])}",
        )
    return [table[name] for name in names]
