"""A report as files in a folder: the page, the figures, the tables and all numbers."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.staging import staged_folder
from momacli.errors import OutputError
from momacli.figures.accuracy import save_figure
from momacli.probing.findings import Curves, Places, Protocols
from momacli.probing.markup import Drawing
from momacli.probing.page import make_page
from momacli.probing.pictures import pictures
from momacli.probing.settings import Settings
from momacli.probing.tables import Models, Tasks, models_of, tidy_tables

PAGE, NUMBERS = "index.html", "numbers.json"


def choose_report(output: str | Path, *, inputs: Sequence[Path], force: bool) -> Path:
    """Where to write a report. Raises OutputError if that would lose an input or another's file.

    A folder that holds a report and no more is replaced; anything else only with `force`.
    """
    target = Path(output)
    if target.is_file():
        raise OutputError(
            f"the output {target} is a file, where a folder is to be written",
            hint="choose another place with -o",
        )
    return choose_output(target, "", inputs=inputs, force=force or _is_report(target), folder=True)


def _is_report(folder: Path) -> bool:
    """Whether a folder holds what a probe wrote, and nothing else."""
    try:
        listed = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["files"]
        expected = {str(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return _files(folder) <= expected


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write_report(
    target: Path,
    merged: str,
    tasks: Tasks,
    others: Models,
    curves: Mapping[str, Curves],
    places: Mapping[str, Places],
    settings: Settings,
    facts: Mapping[str, str],
) -> None:
    """Write the whole report, or nothing; the same numbers give the same bytes.

    others: models that are shown beside the probed one.
    """
    models = models_of(merged, tasks, others)
    with staged_folder(target) as folder:
        drawings = _draw(folder, tasks, curves, places)
        page = make_page(merged, tasks, models, drawings, settings, facts)
        (folder / PAGE).write_text(page, encoding="utf-8")
        (folder / "tables").mkdir()
        for name, rows in tidy_tables(tasks, models).items():
            (folder / "tables" / f"{name}.csv").write_text(_as_csv(rows), encoding="utf-8")
        content = {
            "merged": merged,
            "settings": settings_as_json(settings),
            "facts": dict(facts),
            "tasks": _as_dicts(tasks),
            "compared": {name: _as_dicts(found) for name, found in others.items()},
            "files": sorted({*_files(folder), NUMBERS}),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / NUMBERS).write_text(f"{text}\n", encoding="utf-8")


def _as_dicts(tasks: Mapping[str, Protocols]) -> dict[str, dict[str, Any]]:
    return {task: asdict(found) for task, found in tasks.items()}


def settings_as_json(settings: Settings) -> dict[str, Any]:
    """The settings, with numbers of samples as the command line says them."""
    return {**asdict(settings), "shots": [str(one) for one in settings.shots]}


def _draw(
    folder: Path, tasks: Tasks, curves: Mapping[str, Curves], places: Mapping[str, Places]
) -> dict[str, Drawing]:
    """Write each figure as SVG and PNG; returns them for the page."""
    (folder / "figures").mkdir()
    drawings = {}
    for picture in pictures(tasks, curves, places):
        svg = folder / "figures" / f"{picture.name}.svg"
        save_figure(picture.figure, svg)
        picture.figure.set_layout_engine("none")  # all has its place now
        save_figure(picture.figure, svg.with_suffix(".png"))
        drawings[picture.name] = Drawing(svg.read_bytes(), picture.alt)
    return drawings


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
