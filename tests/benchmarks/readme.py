"""The README's tables and figures of results, made from the JSON in `results/`.

In the README a table stands between `<!-- results: NAME -->` and `<!-- end of results -->`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momacli.comparing.markdown import as_markdown
from momacli.comparing.plan import FINE_TUNED
from momacli.comparing.rows import Row
from momacli.comparing.specs import BASES
from momacli.comparing.table import Cell, Line, Table, main_table
from momacli.figures.accuracy import draw_accuracy
from momacli.figures.marks import COLOURS, MARKERS
from tests.benchmarks.cells import digest_of_files
from tests.benchmarks.comparison import rows_of

README = Path(__file__).parents[2] / "README.md"
RESULTS = Path(__file__).with_name("results")

_BLOCK = re.compile(r"(<!-- results: ([a-z0-9-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def write() -> None:
    """Write the README anew, and the figures it shows."""
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")
    for file in sorted(RESULTS.glob("*.json")):
        content = _read(file.stem)
        if "rows" in content:
            draw(file, rows_of(content), content["tasks"])


def with_results(text: str) -> str:
    """The README's text with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}{found[3]}", text)


def block(name: str) -> str:
    """The table of one result, what it was measured with, and its figures."""
    content = _read(name)
    machine = content["machine"]
    where = (
        f"`{content['command']}`, {content['date']}, {machine['cores']} cores of "
        f"{machine['processor']}, torch {machine['torch']}.\n"
    )
    if "merges" in content:
        return f"{_costs(content)}\n{where}"
    place = RESULTS.relative_to(README.parent).as_posix()
    return (
        f"{as_markdown(_accuracies(rows_of(content), content['tasks']))}\n{where}\n"
        f"![Accuracy by task]({place}/{name}-accuracy.svg)\n"
        f"![Accuracy against added parameters]({place}/{name}-added.svg)\n"
    )


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _accuracies(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    """Methods by tasks, in percent, with the parameters they add."""
    table = main_table(rows, tasks)
    columns = slice(table.header.index("Added"))
    lines = [replace(line, cells=line.cells[columns]) for line in table.lines]
    return replace(table, header=table.header[: columns.stop + 1], lines=lines)


def _costs(content: Mapping[str, Any]) -> str:
    """Processor time and memory of merges, by method; mergekit is 1."""
    header = ["Method", "CPU, first time", "again", "mergekit", "Memory (GB)", "mergekit"]
    lines = []
    for row in content["merges"]:
        first, again, theirs = (row[key] for key in ("hashing", "digests known", "mergekit"))
        ratios = [one["processor"] / theirs["processor"] for one in (first, again)]
        cells = [*(f"{ratio:.2f}" for ratio in ratios), f"{theirs['processor']:.1f} s"]
        memory = [f"{one['own'] / 1e9:.2f}" for one in (again, theirs)]
        lines.append(Line(row["method"], False, [Cell(cell) for cell in (*cells, *memory)]))
    return as_markdown(Table(header, lines))


def draw(file: Path, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Draw the two figures of one suite's result, beside it."""
    accuracies = {
        _short(row): [row.scores[task].accuracy for task in tasks]
        for row in rows
        if _is_shown(row.name)
    }
    figures = {"accuracy": draw_accuracy(accuracies, tasks), "added": draw_added(rows)}
    for name, figure in figures.items():
        with rc_context({"svg.hashsalt": file.stem}):
            figure.savefig(
                file.with_name(f"{file.stem}-{name}.svg"),
                metadata={"Date": None, "Description": digest_of_files(file)},
            )


def _is_shown(name: str) -> bool:
    """Rows of the bar chart: the experts, and task arithmetic with its alignments."""
    return name == FINE_TUNED or name.partition("+")[0] == "task-arithmetic"


def draw_added(rows: Sequence[Row]) -> Figure:
    """Average accuracy against the parameters that a method adds: a colour for each merge."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(_short(row) for row in rows if row.indented))
    signs = dict(zip(["merged", *kinds], MARKERS, strict=False))
    for base, colour in zip(BASES, COLOURS, strict=False):
        for row in rows:
            if row.name.partition("+")[0] == base and row.average is not None:
                sign = signs[_short(row) if row.indented else "merged"]
                place = (row.added or 0) / 1000, 100 * row.average
                axes.plot(*place, color=colour, marker=sign, linestyle="none", clip_on=False)
        axes.plot([], color=colour, linewidth=4, label=base)
    for kind, sign in signs.items():
        axes.plot([], color="0.4", marker=sign, linestyle="none", label=kind)
    for row in rows:
        if row.name == FINE_TUNED and row.average:
            axes.axhline(100 * row.average, color="0.5", linewidth=1, label=row.label.lower())
    axes.set_xlabel("added parameters of all tasks together (thousands)")
    axes.set_ylabel("average accuracy (%)")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _short(row: Row) -> str:
    """What a figure calls a row: without its options."""
    return row.label.removeprefix("w/ ").partition(" (")[0]
