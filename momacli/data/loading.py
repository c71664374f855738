"""A task's samples as its model takes them: images or texts, with labels or without."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from torch import Tensor

from momacli.checkpoint.description import Description
from momacli.data.folders import class_numbers, count_from_one, image_files, labels_of
from momacli.data.images import load_images
from momacli.data.leaving_out import LeaveOut, LeftOut, refuse
from momacli.data.reading import Reading
from momacli.data.tables import read_table
from momacli.data.texts import tokenize
from momacli.data.views import views_of_each
from momacli.models.interface import Padding
from momacli.models.layout import class_names, takes_text
from momacli.models.preprocessing import ImagePreprocessor, image_preprocessor
from momacli.models.text import TextPreprocessor
from momacli.progress import Listener, Notice, ignore


class Samples(Protocol):
    """Prepared inputs of one task, in a fixed order."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files they come from."""
        ...

    @property
    def padding(self) -> Padding:
        """How their batches are brought to a common length."""
        ...

    @property
    def views(self) -> int:
        """How many there are of each image or text; all first ones come first."""
        ...

    @property
    def preparation(self) -> Mapping[str, object]:
        """What was done to the files, for the key of a cache."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The samples of these numbers, as a model takes them."""
        ...


def load_samples(
    path: Path,
    description: Description,
    task: str,
    reading: Reading,
    *,
    told: set[str] | None = None,
    listener: Listener = ignore,
) -> Samples:
    """Read a task's samples without labels. Raises DataError, ModelError.

    told: what was said already of how samples are prepared; what is new is said and added.
    """
    told = set() if told is None else told
    return _load(path, description, task, reading, told, listener, labeled=False)[0]


def load_labeled(
    path: Path,
    description: Description,
    task: str,
    reading: Reading,
    *,
    told: set[str] | None = None,
    listener: Listener = ignore,
) -> tuple[Samples, list[int]]:
    """Read a task's samples and the number of each one's class. Raises DataError, ModelError.

    told: as in `load_samples`.
    """
    told = set() if told is None else told
    return _load(path, description, task, reading, told, listener, labeled=True)


def _load(
    path: Path,
    description: Description,
    task: str,
    reading: Reading,
    told: set[str],
    listener: Listener,
    *,
    labeled: bool,
) -> tuple[Samples, list[int]]:
    classes = class_names(description.config)
    left_out = LeftOut()
    leave_out: LeaveOut = refuse if reading.strict else left_out
    if takes_text(description.config):
        prepare = TextPreprocessor(
            description.config, description.folder, max_length=reading.max_length
        )
        _tell(listener, told, "texts", prepare)
        table = read_table(path, reading.columns, labeled=labeled, leave_out=leave_out)
        left_out.tell(listener, path)
        numbers = reading.sampling.of(range(len(table.texts)), task)
        texts = tokenize(
            table,
            numbers,
            prepare,
            preparation={"columns": asdict(reading.columns), "sampling": asdict(reading.sampling)},
            stage=f"tokenizing {task}",
            listener=listener,
        )
        labels = _numbers(table.labels or (), classes, path, listener)
        return texts, [labels[number] for number in numbers] if labels else []
    prepare_images = image_preprocessor(description.folder, description.config)
    _tell(listener, told, "images", prepare_images)
    files = image_files(path, leave_out=leave_out)
    left_out.tell(listener, path)
    chosen = reading.sampling.of(files, task)
    views = views_of_each(reading.views, len(chosen))
    if views > 1:
        listener(Notice(f"{task}: {views} views of each of its {len(chosen)} images"))
    images = load_images(
        chosen,
        prepare_images,
        strict=reading.strict,
        views=views,
        stage=f"decoding {task}",
        listener=listener,
    )
    return images, labels_of(path, images.files, classes) if labeled else []


def _numbers(
    labels: Sequence[str | int], classes: Sequence[str], path: Path, listener: Listener
) -> list[int]:
    """The class of each label of a file; where they count from 1, that is said."""
    from_one = count_from_one(labels, classes)
    if from_one:
        listener(Notice(f"{path}: its labels count from 1"))
    return class_numbers(labels, classes, f"{path} has labels", first=int(from_one))


def _tell(
    listener: Listener, told: set[str], what: str, prepare: TextPreprocessor | ImagePreprocessor
) -> None:
    """Say what is done to samples, unless that was said."""
    text = f"{what}: {prepare.steps}"
    if text not in told:
        told.add(text)
        listener(Notice(f"{text} (from {prepare.origin})"))
