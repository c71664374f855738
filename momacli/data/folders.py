"""Where samples lie: one folder or file per task, and within a labeled folder, one per class."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

from momacli.data.leaving_out import LeaveOut, LeftOut, refuse
from momacli.data.tables import is_table
from momacli.errors import DataError

Data = str | Path | Sequence[str | Path]
"""Where samples are: a folder, or "TASK=PATH", or several of these."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_SUFFIXES = tuple(IMAGE_SUFFIXES)


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
        for path in sorted(_sources_in(root)) if root.is_dir() else [root]:
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


def _sources_in(root: Path) -> Iterator[Path]:
    """All in a folder but what is an image by its name, of which there may be a million."""
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not _is_image(entry.name) or entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path)
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error.strerror}") from error


def _holds_samples(path: Path) -> bool:
    if path.is_file():
        return is_table(path)
    return any(_image_files(path, LeftOut())) or any(map(is_table, _sources_in(path)))


class Files(Sequence[Path]):
    """Files in a fixed order, a path made where one is asked for: there may be millions."""

    def __init__(self, places: Sequence[str]):
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [Path(place) for place in self._places[index]]
        return Path(self._places[index])


def image_files(folder: Path, *, leave_out: LeaveOut = refuse) -> Files:
    """All image files below a folder, sorted by path. Raises DataError if there are none.

    leave_out: told of each sub-folder that cannot be listed, and of each link to one that is
        read anyway; by default it refuses.
    """
    places = sorted(_image_files(folder, leave_out), key=_by_parts)
    if not places:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{folder} holds no image", hint=f"images are files with {suffixes}")
    return Files(places)


def _by_parts(place: str) -> str:
    """The order of paths, by which all of a folder comes before its namesakes with an ending."""
    return place.replace(os.sep, "\0")


def _is_image(name: str) -> bool:
    name = name.lower()
    return name.endswith(_SUFFIXES) and name not in IMAGE_SUFFIXES


def _image_files(folder: Path, leave_out: LeaveOut) -> Iterator[str]:
    """Image files of every real folder once: the one given, then what links lead to.

    A few folders that link to one another make millions of paths.
    """
    read: set[tuple[int, int]] = set()
    pending = [(os.fspath(folder), frozenset[tuple[int, int]]())]
    while pending:
        links: list[tuple[str, frozenset[tuple[int, int]]]] = []
        for place, above in pending:
            yield from _below(place, above, read, links, leave_out)
        pending = sorted(links, key=lambda link: _by_parts(link[0]))


def _below(
    place: str,
    above: frozenset[tuple[int, int]],
    read: set[tuple[int, int]],
    links: list[tuple[str, frozenset[tuple[int, int]]]],
    leave_out: LeaveOut,
) -> Iterator[str]:
    """Image files in a folder and its sub-folders.

    above: device and inode of the folders on the way here; links back to them are no loss.
    read: the same of all folders so far; added to.
    links: to folders; added to.
    """
    pending = [(place, above)]
    while pending:
        current, above = pending.pop()
        try:
            status = Path(current).stat()
            known = status.st_dev, status.st_ino
            if known in read:
                if known not in above:
                    leave_out(f"{current} is a folder that is read under another name")
                continue
            read.add(known)
            with os.scandir(current) as entries:
                for entry in entries:
                    kind = _kind_of(entry, leave_out)
                    if kind == "folder":
                        found = links if entry.is_symlink() else pending
                        found.append((entry.path, above | {known}))
                    elif kind == "image":
                        yield entry.path
        except OSError as error:
            leave_out(f"{current} cannot be listed: {error.strerror}")


def _kind_of(entry: "os.DirEntry[str]", leave_out: LeaveOut) -> Literal["folder", "image"] | None:
    try:
        if entry.is_dir():
            return None if entry.name.startswith(".") else "folder"
        if not _is_image(entry.name):
            return None
        if entry.is_file():
            return "image"
        leave_out(f"{entry.path} is no file")  # a pipe, or a link that leads nowhere
    except OSError as error:  # a link to itself
        leave_out(f"{entry.path} cannot be read: {error.strerror}")
    return None


def labels_of(folder: Path, files: Sequence[Path], classes: Sequence[str]) -> list[int]:
    """Class index of each file by its class folder, which bears the class's name or number.

    Raises DataError for unknown class folders, and for files that are in none.
    """
    loose = [file.name for file in files if file.parent == folder]
    if loose:
        raise DataError(
            f"{len(loose)} of {len(files)} images in {folder} are in no class folder",
            details=loose[:3],
            hint=f"labeled images lie as {folder}/CLASS/{loose[0]}",
        )
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
