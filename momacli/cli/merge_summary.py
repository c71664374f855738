"""What a merge did, told to people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from momacli.merging.report import MergeReport


def summary_lines(report: "MergeReport") -> list[str]:
    """What a merge did, for people."""
    from momacli.cli.console import amount, duration, names, settings

    doing = "would merge" if report.dry_run else "merged"
    how = f" ({settings(report.parameters)})" if report.parameters else ""
    experts = "1 expert" if len(report.tasks) == 1 else f"{len(report.tasks)} experts"
    tensors = [f"{report.merged} merged ({amount(report.merged_parameters)} parameters)"]
    if report.copied:
        tensors.append(f"{len(report.copied)} from the base ({names(report.copied)})")
    if report.carried:
        tensors.append(f"{report.carried} of heads carried along")
    lines = [
        f"{doing} {experts} by {report.method}{how}",
        f"  base     {report.base}",
        f"  experts  {names(report.tasks, 20)}",
        f"  tensors  {', '.join(tensors)}",
    ]
    if report.left_out:
        lines.append(f"  left out {len(report.left_out)} of experts: {names(report.left_out)}")
    if report.base_head:
        lines.append(f"  left out the base's own head: {names(report.base_head)}")
    if report.samples:
        lines.append(f"  samples  {_of_tasks(report.samples)}")
    if report.coefficients:
        lines.append(f"  lambda   {_of_tasks(report.coefficients)} (means of what was learned)")
    if report.stored_bits is not None:
        masks = amount(-(-report.stored_bits // 8), "bytes")
        lines.append(f"  stored   {masks} would tell the tasks apart, beside one multi-task vector")
    if report.changed_share is not None:
        lines.append(f"  changed  {report.changed_share:.1%} of the merged parameters")
    size = amount(report.nbytes, "bytes")
    if report.dry_run:
        lines.append(f"  input    {amount(report.bytes_read, 'bytes')} in each pass")
        lines.append(f"  output   {report.output} ({size})")
        memory = amount(report.memory, "bytes")
        expected = "" if report.estimate is None else f", {duration(report.estimate)} or so"
        lines.append(f"  needs    about {memory} of memory{expected}")
    else:
        lines.append(f"  wrote    {report.output} ({size}) in {duration(report.seconds)}")
        rate = amount(report.bytes_read / max(report.seconds, 1e-3), "bytes")
        peak = amount(report.memory, "bytes")
        if report.samples:  # the time is the network's
            lines.append(f"  memory   {peak} at most")
        else:
            lines.append(f"  speed    {rate}/s of input, peak memory {peak}")
    return lines


def _of_tasks(numbers: "Mapping[str, float]") -> str:
    return ", ".join(f"{task} {number:.3g}" for task, number in numbers.items())
