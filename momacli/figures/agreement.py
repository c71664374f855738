"""Cosines and coefficients between merged and fine-tuned features (as MOMA Figure 5)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from momacli.figures.marks import COLOURS, LINES

Values = Sequence[NDArray[np.float64]]
"""Of each task: [N]."""

_PLACES = 400


def draw_agreement(cosines: Mapping[str, Values], coefficients: Mapping[str, Values]) -> Figure:
    """Draw the densities under each condition, every task with the same weight.

    Kernel density estimates with Scott's bandwidth; what would lie beyond a cosine of 1 is
    folded back.
    """
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw(left, cosines, upper=1.0)
    _draw(right, coefficients, upper=None)
    left.set_xlabel("cosine of merged and fine-tuned features")
    right.set_xlabel("coefficient  u·v / |v|²")
    left.set_title("(a) direction", fontsize=10)
    right.set_title("(b) length along it", fontsize=10)
    left.legend(frameon=False, loc="upper left")
    for axes in (left, right):
        axes.axvline(1, color="0.6", linewidth=1)
        axes.set_ylabel("density")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw(axes: Axes, values: Mapping[str, Values], *, upper: float | None) -> None:
    pooled = np.concatenate([one for each in values.values() for one in each])
    low, high = np.quantile(pooled, [0.002, 0.998])
    margin = 0.12 * (high - low) or 0.1
    grid = np.linspace(low - margin, high + margin, _PLACES)
    if upper is not None:
        grid = np.linspace(max(-1.0, low - margin), upper, _PLACES)
    for number, (name, each) in enumerate(values.items()):
        density = np.mean([_density(one, grid, upper) for one in each], axis=0)
        axes.plot(
            grid, density, label=name, color=COLOURS[number], linestyle=LINES[number], linewidth=1.8
        )
        axes.fill_between(grid, density, color=COLOURS[number], alpha=0.10, linewidth=0)


def _density(
    values: NDArray[np.float64], grid: NDArray[np.float64], upper: float | None
) -> NDArray[np.float64]:
    """A Gaussian kernel density estimate at the places of a grid."""
    spread = float(values.std())
    width = max(spread, 1e-3) * len(values) ** -0.2  # Scott 1979
    if upper is not None:
        values = np.concatenate([values, 2 * upper - values])  # reflected at the end
    kernel = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2)
    count = len(values) / (1 if upper is None else 2)
    density: NDArray[np.float64] = kernel.sum(axis=1) / (count * width * np.sqrt(2 * np.pi))
    return density
