"""What an earlier run of a suite measured, and what a run with more seeds or rows need not again.

Rows are taken over by their names. That they were made by the same code is for those to know who
name the folder of results; that they were made from the same data and by the same training is
checked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momacli.errors import ConflictError
from tests.benchmarks.comparison import Chosen
from tests.benchmarks.results import Rows, rows_of


@dataclass(frozen=True)
class Result:
    """What one file has."""

    file: Path
    about: Mapping[str, Any]  # of the suite
    plan: Mapping[str, Any]
    runs: Mapping[int, Rows]  # by seed

    @classmethod
    def of(cls, file: Path) -> "Result":
        """Read it."""
        content = json.loads(file.read_text(encoding="utf-8"))
        runs = dict(zip(content["seeds"], map(rows_of, content["runs"]), strict=True))
        return cls(file, content["about"], content["plan"], runs)


@dataclass(frozen=True)
class Earlier:
    """The results of earlier runs, as far as there are some."""

    results: Sequence[Result]

    @classmethod
    def of(cls, files: Sequence[Path]) -> "Earlier":
        """What files have, or nothing where there are none."""
        return cls([Result.of(file) for file in files if file.is_file()])

    @property
    def chosen(self) -> Chosen | None:
        """What was chosen on the validation split."""
        return Chosen(**self.results[0].plan["chosen"]) if self.results else None

    def check(self, about: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Refuse results of other data, training, steps or choices.

        about: of a suite, with any seed.
        plan: of its rows.

        Raises ConflictError, naming all that differs.
        """
        ours = _told(about, plan)
        details = []
        for result in self.results:
            theirs = _told(result.about, result.plan)
            details += [
                f"{result.file}: {key} is {theirs.get(key)}, here {ours.get(key)}"
                for key in sorted(ours | theirs)
                if ours.get(key) != theirs.get(key)
            ]
        if details:
            raise ConflictError("earlier results are of something else", details=details)

    def rows(self, seed: int) -> Rows:
        """What is known of a seed, by the first result that has it."""
        return next((one.runs[seed] for one in self.results if seed in one.runs), Rows(()))


def _told(about: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """What rows depend on but their seed, as JSON has it: tuples are lists there."""
    told: dict[str, Any] = json.loads(json.dumps(about))
    told["training"].pop("seed")
    steps = {key: plan[key] for key in ("steps", "batch_size", "chosen")}
    return {**told, **json.loads(json.dumps(steps))}
