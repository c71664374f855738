"""What is kept of a suite's rows, for programs and for the README; and its tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from momacli.comparing.rows import Row
from momacli.comparing.table import Cell, Table, main_table, sweep_table
from momacli.statistics.score import Score
from tests.benchmarks.comparison import TOGETHER


@dataclass(frozen=True)
class Rows:
    """The rows of one seed, or what several have in common."""

    rows: Sequence[Row]
    masking: Sequence[Row] = field(default_factory=tuple)  # a sweep, as `moma compare` has it
    ratios: Sequence[Row] = field(default_factory=tuple)


def as_json(rows: Rows) -> dict[str, Any]:
    """Rows but for what they took.

    A suite runs for hours, beside other work and with rests: other benchmarks measure costs.
    """
    return {
        kind: [asdict(replace(row, seconds=None, memory=None)) for row in getattr(rows, kind)]
        for kind in ("rows", "masking", "ratios")
    }


def rows_of(content: Mapping[str, Any]) -> Rows:
    """The rows of what `as_json` made."""
    return Rows(**{kind: [_row(one) for one in content[kind]] for kind in content})


def _row(content: Mapping[str, Any]) -> Row:
    scores = {task: Score(**one) for task, one in content["scores"].items()}
    return Row(**{**content, "scores": scores})


def pooled(runs: Sequence[Rows]) -> Rows:
    """The rows of several seeds as one: answers are counted together. Sweeps are of the first."""
    rows = [_pooled(same) for same in zip(*(run.rows for run in runs), strict=True)]
    return replace(runs[0], rows=rows)


def _pooled(rows: Sequence[Row]) -> Row:
    first = rows[0]
    assert all(row.name == first.name for row in rows), "seeds of different rows"
    failed = next((row for row in rows if row.error), None)
    if failed is not None:
        return failed
    return replace(
        first,
        scores={
            task: Score(
                sum(row.scores[task].correct for row in rows),
                sum(row.scores[task].total for row in rows),
            )
            for task in first.scores
        },
    )


def results_table(runs: Sequence[Rows], tasks: Sequence[str]) -> Table:
    """Methods by tasks, in percent, with the parameters they add.

    Of several seeds, the means, and the standard deviation of the average. One encoder that was
    trained with labels is no merge, so that it is never the best.
    """
    rows = pooled(runs).rows
    merges = main_table([row for row in rows if row.name != TOGETHER], tasks)
    beside = main_table([row for row in rows if row.name == TOGETHER], tasks)
    sources = {True: iter(beside.lines), False: iter(merges.lines)}
    lines = [next(sources[row.name == TOGETHER]) for row in rows]
    columns = slice(merges.header.index("Added"))
    average = columns.stop - 1
    shown = []
    for number, line in enumerate(lines):
        cells = list(line.cells[columns])
        found = [run.rows[number].average for run in runs]
        spread = [100 * value for value in found if value is not None]
        if len(spread) > 1:
            cell = cells[average - 1]
            cells[average - 1] = Cell(f"{cell.text} ± {statistics.stdev(spread):.1f}", cell.best)
        shown.append(replace(line, cells=cells))
    return replace(merges, header=merges.header[: columns.stop + 1], lines=shown)


def sweep_tables(runs: Sequence[Rows], tasks: Sequence[str]) -> list[Table]:
    """The sweeps of the data ratio and of the masking rate, of those that were made."""
    both = pooled(runs)
    sweeps = {"Ratio": both.ratios, "Masked": both.masking}
    return [sweep_table(title, rows, tasks) for title, rows in sweeps.items() if rows]
