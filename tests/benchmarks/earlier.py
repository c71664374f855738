"""What an earlier run of a suite measured, and what a run with more seeds or rows need not again.

Rows are taken over by their names. That they were made by the same code is for those to know who
name the folder of results; that they were made from the same data and by the same training is
checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from momacli.errors import ConflictError
from tests.benchmarks.comparison import Chosen
from tests.benchmarks.results import Rows, rows_of


@dataclass(frozen=True)
class Earlier:
    """The result of an earlier run, if there was one."""

    about: Mapping[str, Any] | None = None  # of the suite
    plan: Mapping[str, Any] = field(default_factory=dict)
    runs: Mapping[int, Rows] = field(default_factory=dict)  # by seed

    @classmethod
    def of(cls, file: Path) -> "Earlier":
        """What a file has, or nothing where there is none."""
        if not file.is_file():
            return cls()
        content = json.loads(file.read_text(encoding="utf-8"))
        runs = dict(zip(content["seeds"], map(rows_of, content["runs"]), strict=True))
        return cls(content["about"], content["plan"], runs)

    @property
    def chosen(self) -> Chosen | None:
        """What was chosen on the validation split."""
        return Chosen(**self.plan["chosen"]) if self.plan else None

    def check(self, about: Mapping[str, Any], steps: int, batch_size: int) -> None:
        """Refuse a result of other data, training or steps.

        about: of a suite, with any seed.
        """
        if self.about is None:
            return
        ours = {**_without_seed(about), "steps": steps, "batch_size": batch_size}
        theirs = {
            **_without_seed(self.about),
            **{key: self.plan[key] for key in ("steps", "batch_size")},
        }
        if different := sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key)):
            raise ConflictError(
                "the earlier result is of something else",
                details=[
                    f"{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in different
                ],
            )

    def rows(self, seed: int) -> Rows:
        """What is known of a seed."""
        return self.runs.get(seed, Rows(()))


def _without_seed(about: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: tuples are lists there."""
    plain: dict[str, Any] = json.loads(json.dumps(about))
    plain["training"].pop("seed")
    return plain
