"""The table of a comparison as the paper's Tables 2 and 3 have it, for any format to print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from momacli.comparing.rows import Row

NOT_COMPARED = ("pre-trained", "fine-tuned")
"""Rows that the others lie between; none of them can be the best."""


@dataclass(frozen=True)
class Cell:
    """A number as text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    label: str
    indented: bool
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """Lines under a header, and what is to be said below."""

    header: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = ()


def main_table(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """Methods by tasks, in percent, with what each method adds and takes.

    Added are parameters; the time is in seconds, the peak of memory in megabytes of 10^6 bytes,
    that of a GPU in a column of its own where one was used.
    """
    on_gpu = any(row.gpu_memory for row in rows)
    header = ["Method", *tasks, "Avg.", "Added", "Time (s)", "Memory (MB)"]
    header += ["GPU (MB)"] if on_gpu else []
    best = _best(rows, tasks)
    lines = []
    for row in rows:
        costs = [_count(row.added), _seconds(row.seconds), _megabytes(row.memory)]
        costs += [_megabytes(row.gpu_memory)] if on_gpu else []
        cells = [*_accuracies(row, tasks, best), *(Cell(text) for text in costs)]
        lines.append(Line(row.label, row.indented, cells))
    return Table(header, lines, _failures(rows))


def sweep_table(title: str, rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """The same rows at several settings, as the paper's Table 5 has it.

    title: "Ratio" or "Masked"; the setting stands in the second column, in percent.
    """
    lines = []
    for row in rows:
        share = row.data_ratio if row.masking_rate is None else row.masking_rate
        setting = "-" if share is None else f"{100 * share:g}%"
        cells = [Cell(setting), *_accuracies(row, tasks, {})]
        lines.append(Line(row.label, row.indented, cells))
    return Table(["Method", title, *tasks, "Avg."], lines, _failures(rows))


def _accuracies(row: Row, tasks: Sequence[str], best: Mapping[str, str]) -> list[Cell]:
    """One of each task and their mean; of a row that failed, dashes and the word."""
    if row.average is None:
        return [*(Cell("-") for _ in tasks), Cell("failed")]
    can_win = row.name not in NOT_COMPARED
    cells = []
    for task in (*tasks, ""):
        text = _percent(row.scores[task].accuracy if task else row.average)
        cells.append(Cell(text, can_win and text == best.get(task)))
    return cells


def _best(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, str]:
    """The highest number of each column as it is printed; "" stands for the average."""
    merged = [row for row in rows if row.scores and row.name not in NOT_COMPARED]
    if len(merged) < 2:
        return {}
    highest = {task: max(row.scores[task].accuracy for row in merged) for task in tasks}
    average = max(row.average for row in merged if row.average is not None)
    return {task: _percent(value) for task, value in {**highest, "": average}.items()}


def _failures(rows: Sequence[Row]) -> list[str]:
    return [f"{row.name} failed: {row.error}" for row in rows if row.error is not None]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number}"


def _seconds(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.1f}" if number < 100 else f"{number:.0f}"


def _megabytes(number: int | None) -> str:
    return "-" if not number else f"{number / 1e6:.0f}"
