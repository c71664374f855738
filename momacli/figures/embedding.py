"""Fine-tuned and merged features in the plane, before and after (as MOMA Figures 1 and 2)."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

Places = NDArray[np.float32]
"""[n, 2]."""

_KINDS = {"fine-tuned": ("Blues", "o"), "merged": ("Oranges", "^")}
"""A scale of shades and a shape: apart by colour, and without colours by shape."""


def draw_embedding(
    finetuned: Places,
    merged: Places,
    aligned: Places,
    labels: NDArray[np.int64],
    *,
    classes: int,
    before: str,
    after: str,
) -> Figure:
    """Draw the fine-tuned points in two panels, with the merged ones before and after.

    Shades stand for the classes. before, after: titles, such as accuracies.
    """
    figure = Figure(figsize=(9.2, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, points, title in ((left, merged, before), (right, aligned, after)):
        for name, places in (("fine-tuned", finetuned), ("merged", points)):
            _scatter(axes, name, places, labels, classes)
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("0.7")
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                linestyle="none",
                marker=marker,
                color=_shades(scale, np.float64(0.6)),
                label=f"{name}, a shade a class",
            )
            for name, (scale, marker) in _KINDS.items()
        ],
        ncols=2,
        loc="outside lower center",
        frameon=False,
    )
    return figure


def _scatter(
    axes: Axes, name: str, places: Places, labels: NDArray[np.int64], classes: int
) -> None:
    scale, marker = _KINDS[name]
    axes.scatter(
        places[:, 0],
        places[:, 1],
        c=_shades(scale, labels / max(1, classes - 1)),
        marker=marker,
        s=20,
        edgecolors="white",
        linewidths=0.35,
    )


def _shades(scale: str, places: NDArray[np.float64] | np.float64) -> Any:
    """Red, green, blue and alpha from light, still seen on white, to dark; places: 0 to 1."""
    return colormaps[scale](0.35 + 0.65 * places)
