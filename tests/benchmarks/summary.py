"""All suites in one table: what matters of each, as far as it was measured."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from momacli.alignment.settings import Settings
from momacli.comparing.plan import FINE_TUNED
from momacli.comparing.specs import BASES
from momacli.comparing.table import Cell, Line, Table
from tests.benchmarks.comparison import TOGETHER, Chosen, Plan
from tests.benchmarks.results import Rows, rows_of

_NOT_MEASURED = "-"
_LONGER = f"w/ MOMA, {Settings().steps} steps of {Settings().batch_size}"
_OWN_LENGTH = "+moma"  # the row that names no steps


@dataclass(frozen=True)
class Suite:
    """The average accuracies of a suite's rows, in percent, by the row's name and seed."""

    title: str
    plan: Plan
    averages: Mapping[str, Sequence[float]]
    merges: Sequence[str]  # the rows that are a merge alone and add no parameter

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Suite":
        """From the JSON that a suite wrote."""
        runs = [rows_of(run) for run in content["runs"]]
        plan = Plan(**{**content["plan"], "chosen": Chosen(**content["plan"]["chosen"])})
        averages = {row.name: _of_seeds(runs, row.name) for row in runs[0].rows if row.scores}
        return cls(
            f"{content['suite']} ({', '.join(_sizes(content, len(runs)))})",
            plan,
            averages,
            [row.name for row in runs[0].rows if row.added == 0 and not row.indented],
        )

    def aligned(self, merge: str, label: str) -> str:
        """The name of the row of an alignment, by what it is called here; "" if there is none."""
        ends = {**self.plan.ends, _LONGER: _OWN_LENGTH}
        return f"{merge}{ends[label]}" if label in ends else ""

    def mean(self, name: str) -> float | None:
        """Over the seeds; None where the row was not made."""
        return statistics.mean(self.averages[name]) if name in self.averages else None

    @property
    def best_other(self) -> str | None:
        """The best row that is a merge alone, but for those that alignments stand on."""
        others = [
            name
            for name in self.merges
            if name in self.averages and name not in (*self.plan.chosen.bases, *_ENDS)
        ]
        return max(others, key=lambda name: self.mean(name) or 0.0, default=None)


_ENDS = ("pre-trained", FINE_TUNED, TOGETHER)


def _of_seeds(runs: Sequence[Rows], name: str) -> list[float]:
    found = [row.average for run in runs for row in run.rows if row.name == name]
    return [100 * value for value in found if value is not None]


def _sizes(content: Mapping[str, Any], seeds: int) -> list[str]:
    unlabeled = content.get("about", {}).get("unlabeled")
    return [
        f"{len(content['tasks'])} tasks",
        *([f"≤ {unlabeled} unlabeled"] if unlabeled else []),
        "1 seed" if seeds == 1 else f"{seeds} seeds",
    ]


def summary(contents: Sequence[Mapping[str, Any]]) -> Table:
    """Methods by suites: average accuracies in percent, with the standard deviation of seeds.

    The last lines are the share of what task arithmetic lost that MOMA wins back. What no suite
    has is left out.
    """
    suites = [Suite.of(content) for content in contents]
    lines = [
        _line("Pre-trained", False, suites, ["pre-trained"] * len(suites)),
        _line("Fine-tuned", False, suites, [FINE_TUNED] * len(suites)),
        _line("Traditional MTL", False, suites, [TOGETHER] * len(suites)),
    ]
    best = [suite.best_other for suite in suites]
    lines.append(_line("best other merge", False, suites, best, named=True))
    for number, merge in enumerate(BASES):
        bases = [suite.plan.chosen.bases[number] for suite in suites]
        lines.append(_line(merge, False, suites, bases))
        labels = [*Plan(1, 1).ends, *([_LONGER] if merge == "task-arithmetic" else [])]
        for label in labels:
            names = [suite.aligned(base, label) for base, suite in zip(bases, suites, strict=True)]
            lines.append(_line(label, True, suites, names))
    for label in ("w/ linear alone", "w/ MOMA", "w/ MOMA, linear", _LONGER):
        cells = [_won_back(suite, label) for suite in suites]
        lines.append(Line(f"won back by task-arithmetic {label}", False, cells))
    measured = [line for line in lines if any(cell.text != _NOT_MEASURED for cell in line.cells)]
    return Table(["Method", *(suite.title for suite in suites)], measured)


def _line(
    label: str,
    indented: bool,
    suites: Sequence[Suite],
    names: Sequence[str | None],
    *,
    named: bool = False,
) -> Line:
    """A row, which each suite has under a name of its own."""
    cells = []
    for suite, name in zip(suites, names, strict=True):
        found = suite.averages.get(name or "", ())
        text = f"{statistics.mean(found):.1f}" if found else _NOT_MEASURED
        text += f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        cells.append(Cell(f"{text} ({str(name).partition(':')[0]})" if named and found else text))
    return Line(label, indented, cells)


def _won_back(suite: Suite, label: str) -> Cell:
    merge = suite.plan.chosen.task_arithmetic
    above, below, found = map(suite.mean, (FINE_TUNED, merge, suite.aligned(merge, label)))
    if above is None or below is None or found is None:
        return Cell(_NOT_MEASURED)
    return Cell(f"{100 * (found - below) / (above - below):.0f} %")
