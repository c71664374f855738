"""What an alignment did, for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from momacli.alignment.report import AlignReport
    from momacli.cli.console import Table
    from momacli.data.features import CacheUse


def summary_lines(report: "AlignReport") -> list[str]:
    """What an alignment did, for people."""
    from momacli.alignment.catalog import MOMA
    from momacli.cli.console import aligned, amount, duration, names

    learned = _learned(report)
    if report.dry_run:
        tasks = names(list(report.parameters), 20)
        return [
            f"would align {len(report.parameters)} tasks: {learned} on {report.device}",
            f"  tasks    {tasks}",
            f"  output   {report.output}",
            f"  beside   {report.alignment}",
        ]
    lines = [f"aligned {len(report.tasks)} tasks: {learned} on {report.device}"]
    if report.masked_share or (report.method == MOMA and report.steps):
        lines.append(
            f"  mask     {report.steps} steps, {amount(report.samples_per_second, 'samples')}/s, "
            f"headroom {report.headroom:.3g}, "
            f"{report.masked_share:.1%} of the multi-task vector below half"
        )
    lines += [f"  {line}" for line in aligned(_table(report))]
    lines.append(f"  size     {_size(report)}")
    if report.cache is not None:
        lines.append(f"  cache    {cache_text(report.cache)}")
    lines.append(f"  wrote    {report.output} and {report.alignment} in {duration(report.seconds)}")
    return lines


def cache_text(use: "CacheUse") -> str:
    """What a run had from the cache of features, and how large that is."""
    from momacli.cli.console import amount

    return (
        f"fine-tuned features of {len(use.found)} tasks found, of {len(use.computed)} computed; "
        f"{amount(use.nbytes, 'bytes')} in {use.folder}"
    )


def _learned(report: "AlignReport") -> str:
    """What is fitted: mask and transforms, or a method with its options."""
    from momacli.alignment.catalog import MOMA
    from momacli.cli.console import settings

    if report.method == MOMA:
        return "transforms" if report.settings["mask"] == "none" else "mask and transforms"
    given = {key: value for key, value in report.settings.items() if key != "method"}
    return f"{report.method} ({settings(given)})"


def _table(report: "AlignReport") -> "Table":
    """A row a task; how orthogonal the transforms are where there are any."""
    from momacli.cli.console import Table

    objective = "objective" if report.objective == "both" else report.objective
    header = ["task", "samples", objective, "cosine", "coefficient", "|AᵀA-I|", "Δlogit"]
    rows = [
        [
            task,
            str(one.samples),
            f"{one.objective_before:.4g} → {one.objective_after:.4g}",
            f"{one.cosine_before:.3f} → {one.cosine_after:.3f}",
            f"{one.coefficient_before:.3f} → {one.coefficient_after:.3f}",
            "" if one.orthogonality_error is None else f"{one.orthogonality_error:.0e}",
            f"{one.logit_difference:.0e}",
        ]
        for task, one in report.tasks.items()
    ]
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _size(report: "AlignReport") -> str:
    """How many parameters there are, and how many were added."""
    from momacli.cli.console import amount

    counts = sorted(set(report.parameters.values()))
    same = " to ".join(amount(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    if not report.added:
        return f"{same} parameters a task, as before: none added"
    each = amount(max(report.added.values()))
    return (
        f"{same} parameters a task, and {each} added to each, "
        f"{amount(sum(report.added.values()))} in all, in {report.alignment.name}"
    )
