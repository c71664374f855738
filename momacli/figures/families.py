"""How well each family of maps leads from merged to fine-tuned features (as MOMA Figure 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momacli.figures.marks import COLOURS, LINES, MARKERS


@dataclass(frozen=True)
class Family:
    """One family, a number a task."""

    name: str
    error_fitted: Sequence[float]  # E|G(z_m) - z_t|^2 / E|z_t|^2 where it was fitted
    error: Sequence[float]  # the same on the samples it is evaluated on
    accuracy: Sequence[float]  # 0 to 1


def draw_families(
    families: Sequence[Family], tasks: Sequence[str], levels: Mapping[str, float]
) -> Figure:
    """Draw errors and accuracies, families from left to right; averages large, tasks small.

    levels: accuracies that are drawn as lines, such as the fine-tuned models'.
    """
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_errors(left, families)
    _draw_accuracies(right, families, tasks, levels)
    for axes in (left, right):
        axes.set_xticks(
            range(len(families)), [one.name for one in families], rotation=35, ha="right"
        )
        axes.set_xlim(-0.5, len(families) - 0.5)
        axes.grid(axis="y", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_errors(axes: Axes, families: Sequence[Family]) -> None:
    for shift, label, colour, hatch, values in (
        (-0.2, "where it was fitted", "#BBBBBB", "", [one.error_fitted for one in families]),
        (0.2, "where it is evaluated", COLOURS[2], "//", [one.error for one in families]),
    ):
        axes.bar(
            [place + shift for place in range(len(families))],
            [100 * sum(each) / len(each) for each in values],
            width=0.38,
            label=label,
            color=colour,
            hatch=hatch,
            edgecolor="white",
        )
    axes.set_ylabel("squared error (% of the fine-tuned features' square)")
    axes.set_ylim(bottom=0)
    axes.set_title("(a) what is left between the features, average", fontsize=10)
    axes.legend(frameon=False, fontsize=9)


def _draw_accuracies(
    axes: Axes, families: Sequence[Family], tasks: Sequence[str], levels: Mapping[str, float]
) -> None:
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(100 * level, label=name, color="0.35", linestyle=LINES[number], linewidth=1.2)
    for number, task in enumerate(tasks):
        axes.plot(
            range(len(families)),
            [100 * one.accuracy[number] for one in families],
            color=COLOURS[1 + number % (len(COLOURS) - 1)],
            marker=MARKERS[1 + number % (len(MARKERS) - 1)],
            linestyle="none",
            markersize=5,
            alpha=0.9,
            label=task,
        )
    axes.plot(
        range(len(families)),
        [100 * sum(one.accuracy) / len(one.accuracy) for one in families],
        color="black",
        marker="o",
        markersize=7,
        linewidth=1.5,
        label="average",
        zorder=3,
    )
    axes.set_ylabel("accuracy of the fine-tuned head (%)")
    axes.set_title("(b) what the static head makes of them", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
