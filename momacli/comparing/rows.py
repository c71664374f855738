"""What came of one row of a comparison, and the file that keeps what is finished."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from momacli.checkpoint.staging import staged_file
from momacli.errors import OutputError
from momacli.progress import Listener, Notice, ignore
from momacli.statistics.score import Score

STATE = "rows.json"
"""The file, in the folder of a comparison, that keeps its finished rows."""

_FORMAT = "moma comparison 1"


@dataclass(frozen=True)
class Row:
    """One method on all tasks."""

    name: str  # as it is written on the command line
    label: str  # as a table calls it
    indented: bool  # an alignment, under the merge that it is of
    scores: Mapping[str, Score] = field(default_factory=dict)  # task -> correct answers
    added: int | None = None  # parameters beyond those of the experts' own architecture
    seconds: float | None = None  # of merging and aligning
    memory: int | None = None  # bytes: the largest peak of a process that did so
    gpu_memory: int | None = None  # bytes that torch had allocated there at most
    masking_rate: float | None = None  # share of the mask's entries set to 0
    data_ratio: float | None = None  # share of the unlabeled samples
    error: str | None = None

    @property
    def average(self) -> float | None:
        """The mean of the accuracies, 0 to 1, all tasks alike; None for a row that failed."""
        values = [score.accuracy for score in self.scores.values()]
        return sum(values) / len(values) if values else None


class Finished:
    """Rows by the key of what made them, in a file that is written anew with each."""

    def __init__(self, path: Path, *, listener: Listener = ignore):
        """Read the file, if there is one; a damaged one counts as none, and that is said."""
        self.path = path
        self._rows: dict[str, Row] = {}
        if not path.is_file():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError("of another version")
            self._rows = {key: _row(row) for key, row in content["rows"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            listener(Notice(f"{path} is damaged, or of another version; all rows are made anew"))

    def begin(self) -> None:
        """Put the file there, so that the folder is known for a comparison's from the start."""
        if not self.path.exists():
            self._write()

    def get(self, key: str) -> Row | None:
        """The row of this key, if it is finished."""
        return self._rows.get(key)

    def put(self, key: str, row: Row) -> None:
        """Keep a row. Raises OutputError."""
        self._rows[key] = row
        self._write()

    def _write(self) -> None:
        rows = {key: asdict(row) for key, row in self._rows.items()}
        text = json.dumps({"format": _FORMAT, "rows": rows}, indent=1) + "\n"
        with staged_file(self.path) as staged:
            staged.write_text(text, encoding="utf-8")


def _row(content: Mapping[str, Any]) -> Row:
    scores = {task: Score(**score) for task, score in content["scores"].items()}
    return Row(**{**content, "scores": scores})


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds other things than a comparison. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, where a folder is to be written")
    if force or not folder.is_dir() or (folder / STATE).is_file() or not any(folder.iterdir()):
        return
    raise OutputError(
        f"{folder} exists and holds no comparison",
        hint="choose another place with -o, or write into it with --force",
    )
