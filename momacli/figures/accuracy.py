"""Accuracy of several models, task by task, as grouped bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momacli.checkpoint.staging import staged_file

# Okabe-Ito colours ordered from dark to light, so that they also differ in grayscale.
_COLOURS = ("#000000", "#D55E00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7")
_HATCHES = ("", "//", "..", "", "xx", "\\\\")


def draw_accuracy(
    rows: Mapping[str, Sequence[float]],
    tasks: Sequence[str],
    *,
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    title: str = "",
) -> Figure:
    """Draw one group of bars per task and one for the average.

    rows: model -> accuracy (0 to 1) of each task, in the order of `tasks`.
    errors: model -> (lower, upper) end of each task's interval.
    """
    groups = [*tasks, "average"]
    width = 0.8 / len(rows)
    figure = Figure(figsize=(max(6.4, 1.5 * len(groups)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(rows.items()):
        heights = [100 * value for value in [*values, sum(values) / len(values)]]
        places = [group + (number - (len(rows) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(
            places,
            heights,
            width=0.92 * width,
            label=name,
            color=_COLOURS[number % len(_COLOURS)],
            hatch=_HATCHES[number % len(_HATCHES)],
            edgecolor="white",
            linewidth=0.5,
        )
        axes.annotate(
            f"{heights[-1]:.0f}",
            (places[-1], heights[-1]),
            ha="center",
            va="bottom",
            fontsize=9,
            xytext=(0, 2),
            textcoords="offset points",
        )
        if errors:
            ends = errors[name]
            below = [100 * (v - low) for v, (low, _) in zip(values, ends, strict=True)]
            above = [100 * (high - v) for v, (_, high) in zip(values, ends, strict=True)]
            axes.errorbar(
                places[:-1], heights[:-1], yerr=[below, above], fmt="none", ecolor="0.5", lw=1
            )
    axes.axvline(len(tasks) - 0.5, color="0.8", lw=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("accuracy on held-out data (%)")
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=len(rows), loc="outside upper center", frameon=False, title=title or None)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the file's suffix, the same bytes every time.

    Raises OutputError; a file that was there stays until the new one is complete.
    """
    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    # without a salt, the identifiers of an SVG are random
    with staged_file(path) as staged, rc_context({"svg.hashsalt": "moma"}):
        figure.savefig(staged, format=kind, dpi=150, metadata=metadata)
