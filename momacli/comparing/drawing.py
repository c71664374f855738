"""The sweeps of a comparison as figures."""

from collections.abc import Collection, Sequence
from pathlib import Path

from momacli.comparing.report import CompareReport
from momacli.comparing.rows import Row


def draw_sweeps(report: CompareReport) -> list[Path]:
    """The figures of the sweeps, as PNG and SVG."""
    swept = {
        "masking-rate": ("masking rate", report.masking),
        "data-ratio": ("share of the unlabeled samples", report.ratios),
    }
    files = []
    for name, (x_label, rows) in swept.items():
        lines = _lines(rows)
        if not lines:
            continue
        from momacli.figures.accuracy import save_figure
        from momacli.figures.sweeps import draw_sweep

        wide = name == "data-ratio"
        figure = draw_sweep(lines, x_label=x_label, levels=_levels(report, lines), logarithmic=wide)
        for suffix in ("png", "svg"):
            files.append(report.output / f"{name}.{suffix}")
            save_figure(figure, files[-1])
    return files


def _levels(report: CompareReport, swept: Collection[str]) -> dict[str, float]:
    """The averages of the experts, and of the merges whose alignments are swept."""
    fine_tuned = report.rows[1]
    found = {fine_tuned.label: fine_tuned.average}
    merge = fine_tuned
    for row in report.rows:
        merge = merge if row.indented else row
        if row.name in swept:
            found[merge.label] = merge.average
    return {label: average for label, average in found.items() if average is not None}


def _lines(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Setting and average accuracy of each method, in rising order."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        setting = row.data_ratio if row.masking_rate is None else row.masking_rate
        if setting is not None and row.average is not None:
            lines.setdefault(row.name, []).append((setting, row.average))
    return {name: sorted(points) for name, points in lines.items()}
