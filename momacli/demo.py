"""The main job on real handwriting, start to finish, by the public commands."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.progress import Listener, ignore

if TYPE_CHECKING:
    from momacli.demonstration.prepare import Settings

FIGURE = "accuracy.png"

COLUMNS: Mapping[str, str] = {
    "fine-tuned": "experts",
    "merged": "merged",
    "orthogonal only": "orthogonal",
    "MOMA": "aligned",
}
"""Column of the closing table -> folder of the models it is measured on."""

Run = Callable[[Sequence[str], Path], str]
"""Runs `moma ARGUMENTS` in a folder and returns what it wrote on stdout."""


@dataclass(frozen=True)
class DemoReport:
    """Accuracies (0 to 1) by column and task, on data no alignment has seen."""

    folder: Path
    figure: Path
    tasks: tuple[str, ...]
    accuracies: Mapping[str, Sequence[float]]
    intervals: Mapping[str, Sequence[tuple[float, float]]]
    seconds: float

    def average(self, column: str) -> float:
        """Return a column's mean over the tasks."""
        values = self.accuracies[column]
        return sum(values) / len(values)

    @property
    def recovered(self) -> float:
        """Share of the accuracy lost between fine-tuned and merged that MOMA wins back."""
        lost = self.average("fine-tuned") - self.average("merged")
        return (self.average("MOMA") - self.average("merged")) / lost


def commands(tasks: Sequence[str]) -> list[list[str]]:
    """Return the public commands of the demo, to be run in its folder one after another."""
    experts = [f"experts/{task}" for task in tasks]
    return [
        ["task-vector", "base", *experts, "-o", "task-vectors"],
        ["merge", *experts, "--base", "base", "--method", "task-arithmetic"],
        ["align", "--data", "unlabeled", "--mask", "none", "-o", "orthogonal"],
        ["align", "--data", "unlabeled"],
        ["absorb", "merged", "aligned/alignment.safetensors", "-o", "absorbed"],
        ["evaluate", *COLUMNS.values(), "--data", "labeled", "--json"],
    ]


def demo(
    folder: str | Path,
    *,
    run: Run,
    seed: int = 0,
    settings: "Settings | None" = None,
    listener: Listener = ignore,
) -> DemoReport:
    """Prepare models and images in `folder` (or reuse them), run the commands, draw the figure.

    run: how a command is shown and run.
    settings: of the trainings; by default those of `prepare`.
    """
    from momacli.demonstration.prepare import DEFAULTS, prepare
    from momacli.figures.accuracy import draw_accuracy, save_figure

    started = time.monotonic()
    place = Path(folder)
    prepared = prepare(place, seed=seed, settings=settings or DEFAULTS, listener=listener)
    output = ""
    for arguments in commands(prepared.tasks):
        output = run(arguments, place)
    accuracies, intervals = _scores(json.loads(output), prepared.tasks)
    figure = draw_accuracy(
        accuracies, prepared.tasks, errors=intervals, title="One model for all tasks"
    )
    save_figure(figure, place / FIGURE)
    return DemoReport(
        place,
        place / FIGURE,
        tuple(prepared.tasks),
        accuracies,
        intervals,
        time.monotonic() - started,
    )


def _scores(
    content: Mapping[str, Any], tasks: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[tuple[float, float]]]]:
    accuracies, intervals = {}, {}
    for column, model in COLUMNS.items():
        scores = [content["models"][model]["tasks"][task] for task in tasks]
        accuracies[column] = [score["accuracy"] for score in scores]
        intervals[column] = [tuple(score["interval"]) for score in scores]
    return accuracies, intervals


def interpreter() -> list[str]:
    """Return the command that runs this very moma, wherever it is installed."""
    return [sys.executable, "-m", "momacli"]
