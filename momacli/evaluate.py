"""Accuracy of a model on labeled folders, task by task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.align import choose_device
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.errors import DataError, ModelError
from momacli.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BATCH = 64
_Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Score:
    """Correct answers out of all, and the accuracy's 95 % Wilson score interval."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval (Wilson 1927)."""
        n, p = self.total, self.accuracy
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class EvalReport:
    """Scores by model and task."""

    scores: Mapping[str, Mapping[str, Score]]

    def average(self, model: str) -> float:
        """Return the macro average: the mean of a model's accuracies, all tasks alike."""
        scores = self.scores[model].values()
        return sum(score.accuracy for score in scores) / len(scores)


def evaluate(
    models: Sequence[str | Path],
    *,
    data: str | Path,
    config: str | Path | None = None,
    device: str = "auto",
    strict: bool = False,
    listener: Listener = ignore,
) -> EvalReport:
    """Count correct answers of each model's tasks on `data`/<task>/<class>/*.

    models: files or folders of one task or several (a folder of experts, merged/, aligned/).
    The classes of a head are those of its own id2label; a class folder bears a class's name or
    number.

    Raises MomaErrors where a model cannot be read or a folder does not match its labels.
    """
    chosen = choose_device(device)
    prepared: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    scores: dict[str, dict[str, Score]] = {}
    for path in models:
        with MultiTask.open(Path(path), config=Path(config) if config else None) as model:
            scores[str(path)] = _evaluate(model, Path(data), chosen, strict, listener, prepared)
    return EvalReport(scores)


def _evaluate(
    model: MultiTask,
    data: Path,
    device: "torch.device",
    strict: bool,
    listener: Listener,
    prepared: "dict[tuple[str, str], tuple[Tensor, Tensor]]",
) -> dict[str, Score]:
    from momacli.data.folders import task_folders

    for one in model.tasks.values():
        if one.description is None:
            raise ModelError(
                f"{model.path} does not say what kind of model it is",
                hint="give its config.json with --config",
            )
    folders = task_folders(data, list(model.tasks))
    scores = {}
    for done, (task, one) in enumerate(model.tasks.items()):
        key = (str(folders[task]), _preparation(one))
        if key not in prepared:
            prepared[key] = _labeled(one, folders[task], strict, listener)
        listener(Progress(f"evaluating {model.path}", done, len(model.tasks), "tasks"))
        scores[task] = _score(one, *prepared[key], device)
    listener(Progress(f"evaluating {model.path}", len(model.tasks), len(model.tasks), "tasks"))
    return scores


def _preparation(model: TaskModel) -> str:
    """What determines a task's prepared inputs and labels: processor files and classes."""
    from momacli.models.layout import class_names

    assert model.description is not None
    files = (file.read_bytes().hex() for file in model.description.companions)
    return "|".join([*files, *class_names(model.description.config)])


def _labeled(
    model: TaskModel, folder: Path, strict: bool, listener: Listener
) -> "tuple[Tensor, Tensor]":
    import torch

    from momacli.data.folders import image_files, labels_of
    from momacli.data.images import load_images
    from momacli.models.layout import class_names
    from momacli.models.preprocessing import image_preprocessor

    assert model.description is not None
    samples = load_images(
        image_files(folder),
        image_preprocessor(model.description.folder),
        strict=strict,
        stage=f"decoding {model.task}",
        listener=listener,
    )
    labels = labels_of(folder, samples.files, class_names(model.description.config))
    return samples.values, torch.tensor(labels)


def _score(model: TaskModel, values: "Tensor", labels: "Tensor", device: "torch.device") -> Score:
    import torch

    from momacli.models.classification import Classifier

    assert model.description is not None
    classifier = Classifier(model.description.config, model.entries, device=device)
    classifier.load(
        lambda key: model.checkpoint.read(model.keys[key]),
        model.keys,
        source=str(model.checkpoint.path),
    )
    correct = 0
    with torch.no_grad():
        for part, wanted in zip(values.split(_BATCH), labels.split(_BATCH), strict=True):
            logits = classifier.logits({"pixel_values": part.to(device)})
            if int(wanted.max()) >= logits.shape[1]:
                raise DataError(
                    f"the labels of task {model.task} go up to {int(wanted.max())}, "
                    f"its head has {logits.shape[1]} classes"
                )
            correct += int((logits.argmax(dim=1).cpu() == wanted).sum())
    return Score(correct, len(labels))
