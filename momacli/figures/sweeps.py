"""Average accuracy against a setting: the paper's Figure 8, and its Table 5 as a figure."""

from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe-Ito colours from dark to light; markers and dashes tell the lines apart without them.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")


def draw_sweep(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    levels: Mapping[str, float] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Draw a line a method.

    lines: method -> (setting, average accuracy), both from 0 to 1.
    levels: what does not depend on the setting, such as the fine-tuned models: horizontal.
    logarithmic: for settings over several orders of magnitude.
    """
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    settings = sorted({100 * setting for points in lines.values() for setting, _ in points})
    for number, (name, points) in enumerate(lines.items()):
        axes.plot(
            [100 * setting for setting, _ in points],
            [100 * accuracy for _, accuracy in points],
            label=name,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=_DASHES[number % len(_DASHES)],
            clip_on=False,
        )
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(100 * level, color="0.45", linewidth=1, linestyle=(0, (1 + 4 * number, 3)))
        axes.annotate(
            name,
            (1, 100 * level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
            color="0.3",
        )
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
    axes.minorticks_off()
    axes.set_xlabel(f"{x_label} (%)")
    axes.set_ylabel("average accuracy (%)")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(ncols=2, loc="outside upper center", frameon=False, fontsize=9)
    return figure
