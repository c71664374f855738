"""How the fitted matrices turn and stretch: eigenphases and singular values."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from momacli.figures.marks import COLOURS, LINES, MARKERS


def draw_transforms(
    phases: Mapping[str, NDArray[np.float64]], stretches: Mapping[str, NDArray[np.float64]]
) -> Figure:
    """Draw a line a task: its orthogonal map's phases, its linear map's singular values.

    phases: [d], degrees, ascending. stretches: [d], descending.
    """
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw(left, phases)
    _draw(right, stretches)
    left.set_ylim(0, 184)
    left.set_yticks(range(0, 181, 45))
    left.set_ylabel("eigenphase (degrees)")
    left.set_title("(a) the orthogonal map: how far its planes are turned", fontsize=10)
    right.set_yscale("log")
    right.axhline(1, color="0.6", linewidth=1)
    right.set_ylabel("singular value")
    right.set_title("(b) the linear map: how unlike a rotation it stretches", fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    columns = min(len(labels), 6)
    figure.legend(handles, labels, ncols=columns, loc="outside upper center", frameon=False)
    return figure


def _draw(axes: Axes, lines: Mapping[str, NDArray[np.float64]]) -> None:
    for number, (task, values) in enumerate(lines.items()):
        places = 100 * (np.arange(len(values)) + 0.5) / len(values)
        every = max(1, len(values) // 8)
        axes.plot(
            places,
            np.maximum(values, 1e-12),
            label=task,
            color=COLOURS[number % len(COLOURS)],
            linestyle=LINES[number % len(LINES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=(number * every // 5 % every, every),
            markersize=5,
            linewidth=1.4,
        )
    axes.set_xlabel("share of the directions (%)")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
