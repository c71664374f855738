"""Tables and figures of results, made from the JSON in `results/`.

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`: in the README that of
all suites together and of costs, in `results/README.md` all rows of every suite.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momacli.comparing.markdown import as_markdown
from momacli.comparing.plan import FINE_TUNED
from momacli.comparing.rows import Row
from momacli.comparing.specs import BASES
from momacli.comparing.table import Cell, Line, Table
from momacli.figures.accuracy import draw_accuracy
from momacli.figures.marks import COLOURS, MARKERS
from tests.benchmarks.alignment_cost import StepCost
from tests.benchmarks.cells import digest_of_files
from tests.benchmarks.results import pooled, results_table, rows_of, sweep_tables
from tests.benchmarks.summary import summary

README = Path(__file__).parents[2] / "README.md"
RESULTS = Path(__file__).with_name("results")
PAGES = (README, RESULTS / "README.md")

SUITES = ("text5", "text13", "vision8", "vision12", "clip8")
"""Columns of the table of all suites, as far as they are measured."""

_BLOCK = re.compile(r"(<!-- results: ([a-z0-9-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def write() -> None:
    """Write both pages anew, and the figures they show."""
    for page in PAGES:
        page.write_text(with_results(page.read_text(encoding="utf-8")), encoding="utf-8")
    for file in sorted(RESULTS.glob("*.json")):
        content = _read(file.stem)
        if "runs" in content:
            draw(file, pooled([rows_of(run) for run in content["runs"]]).rows, content["tasks"])


def with_results(text: str) -> str:
    """The text of a page with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}{found[3]}", text)


def block(name: str) -> str:
    """The table of all suites, or of one result with what it was measured with and its figures."""
    if name == "suites":
        return as_markdown(summary([_read(one) for one in SUITES if _file(one).is_file()]))
    content = _read(name)
    machine = content["machine"]
    where = (
        f"`{content['command']}`, {content['date']}, {machine['cores']} cores of "
        f"{machine['processor']}, torch {machine['torch']}.\n"
    )
    if "merges" in content:
        return f"{_costs_of_merges(content['merges'])}\n{where}"
    if "steps" in content:
        return f"{_costs_of_steps([StepCost(**one) for one in content['steps']])}\n{where}"
    runs, tasks = [rows_of(run) for run in content["runs"]], content["tasks"]
    tables = "\n".join(map(as_markdown, [results_table(runs, tasks), *sweep_tables(runs, tasks)]))
    return (
        f"{tables}\n{where}\n"
        f"![Accuracy by task]({name}-accuracy.svg)\n"
        f"![Accuracy against added parameters]({name}-added.svg)\n"
    )


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_file(name).read_text(encoding="utf-8"))
    return content


def _file(name: str) -> Path:
    return RESULTS / f"{name}.json"


def _costs_of_merges(merges: Sequence[Mapping[str, Any]]) -> str:
    """Processor time and memory of merges, by method; mergekit is 1."""
    header = ["Method", "CPU, first time", "again", "mergekit", "Memory (GB)", "mergekit"]
    lines = []
    for row in merges:
        first, again, theirs = (row[key] for key in ("hashing", "digests known", "mergekit"))
        ratios = [one["processor"] / theirs["processor"] for one in (first, again)]
        cells = [*(f"{ratio:.2f}" for ratio in ratios), f"{theirs['processor']:.1f} s"]
        memory = [f"{one['own'] / 1e9:.2f}" for one in (again, theirs)]
        lines.append(Line(row["method"], False, [Cell(cell) for cell in (*cells, *memory)]))
    return as_markdown(Table(header, lines))


def _costs_of_steps(steps: Sequence[StepCost]) -> str:
    """Processor time and memory of steps, by encoder and samples; a plain training step is 1."""
    kinds = ("moma", "moma-float32", "naive")
    header = ["Encoder", "Samples", "Plain, CPU", *kinds, "Plain (GB)", *kinds]
    lines = []
    for plain in (step for step in steps if step.kind == "plain"):
        like = (plain.size, plain.tasks, plain.batch)
        own = {s.kind: s for s in steps if (s.size, s.tasks, s.batch) == like}
        cells = [f"{plain.tasks} × {plain.batch}", f"{plain.seconds:.2f} s"]
        cells += [f"{own[kind].seconds / plain.seconds:.2f}" for kind in kinds]
        cells += [f"{own[kind].own / 1e9:.2f}" for kind in ("plain", *kinds)]
        encoder = f"{plain.size} ({plain.encoder / 4e6:.1f} M)"
        lines.append(Line(encoder, False, [Cell(cell) for cell in cells]))
    return as_markdown(Table(header, lines))


def draw(file: Path, rows: Sequence[Row], tasks: Sequence[str]) -> None:
    """Draw the two figures of one suite's result, beside it."""
    accuracies: dict[str, list[float]] = {}
    for row in filter(_is_shown, rows):  # the first of a name, which has the suite's steps
        accuracies.setdefault(_short(row), [row.scores[task].accuracy for task in tasks])
    figures = {"accuracy": draw_accuracy(accuracies, tasks), "added": draw_added(rows)}
    for name, figure in figures.items():
        with rc_context({"svg.hashsalt": file.stem}):
            figure.savefig(
                file.with_name(f"{file.stem}-{name}.svg"),
                metadata={"Date": None, "Description": digest_of_files(file)},
            )


_BARS = ("task-arithmetic", "Surgery", "ProbSurgery", "MOMA as in the paper", "MOMA")


def _is_shown(row: Row) -> bool:
    """Rows of the bar chart: the experts, and task arithmetic with its main alignments."""
    aligned = _merge_of(row.name) == "task-arithmetic" and _short(row) in _BARS
    return (row.name == FINE_TUNED or aligned) and row.average is not None


def _merge_of(name: str) -> str:
    """The merge of a row, without its options."""
    return name.partition("+")[0].partition(":")[0]


def draw_added(rows: Sequence[Row]) -> Figure:
    """Average accuracy against the parameters that a method adds: a colour for each merge."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(_short(row) for row in rows if row.indented))
    signs = dict(zip(["merged", *kinds], MARKERS, strict=False))
    for base, colour in zip(BASES, COLOURS, strict=False):
        for row in rows:
            if _merge_of(row.name) == base and row.average is not None:
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
    """What a figure calls a row: without the options that all of its kind have."""
    name, _, options = row.label.removeprefix("w/ ").removesuffix(")").partition(" (")
    own = [one for one in options.split(", ") if one and one.split()[0] not in _SHARED]
    return f"{name} ({', '.join(own)})" if own else name


_SHARED = ("steps", "batch-size", "lambda", "density")
