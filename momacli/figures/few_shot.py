"""Accuracy with a few labeled samples against the static head (as MOMA Figures 3 and 12)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momacli.figures.marks import COLOURS, LINES, MARKERS


@dataclass(frozen=True)
class Panel:
    """One task, or the average of all: accuracies from 0 to 1."""

    title: str
    levels: Mapping[str, float]  # what needs no samples, such as the static head
    curves: Mapping[str, Sequence[tuple[float, float]]]  # mean and deviation at each size


def draw_few_shot(panels: Sequence[Panel], sizes: Sequence[str], *, columns: int = 3) -> Figure:
    """Draw a panel a task: horizontal lines for the levels, a curve with bars for the others.

    sizes: how many samples of each class, as the axis says it.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.0 * columns, 2.5 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, sizes)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel("accuracy (%)")
    figure.supxlabel("labeled samples of each class", fontsize=10)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center", frameon=False)
    return figure


def _draw(axes: Axes, panel: Panel, sizes: Sequence[str]) -> None:
    places = range(len(sizes))
    for number, (name, level) in enumerate(panel.levels.items()):
        axes.axhline(
            100 * level, label=name, color=COLOURS[0], linestyle=LINES[number], linewidth=1.3
        )
    for number, (name, points) in enumerate(panel.curves.items(), start=1):
        axes.errorbar(
            [place + 0.06 * (number - 1.5) for place in places],
            [100 * mean for mean, _ in points],
            yerr=[100 * deviation for _, deviation in points],
            label=name,
            color=COLOURS[number],
            marker=MARKERS[number],
            linestyle=LINES[2 * number - 2],
            capsize=2,
        )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xticks(places, sizes)
    axes.set_xlim(-0.4, len(sizes) - 0.6)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
