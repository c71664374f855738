"""What `moma align --prepare` does and says."""

from collections.abc import Mapping, Sequence
from typing import Any


def prepare_features(
    merged: str | None,
    tasks: Sequence[str],
    sources: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Keep features for later, and print the folder that they are in."""
    from momacli.cli.align_summary import cache_text
    from momacli.cli.console import duration, is_follower, print_json, print_path, say
    from momacli.cli.listening import listening
    from momacli.prepare import prepare

    wanted = None if "all" in tasks else tasks
    with listening() as listener:
        report = prepare(merged, tasks=wanted, listener=listener, **sources)
    if is_follower():
        return
    counts = ", ".join(f"{task} ({count} samples)" for task, count in report.samples.items())
    say(f"prepared {counts} on {report.device} in {duration(report.seconds)}")
    say(f"  cache    {cache_text(report.cache)}")
    if as_json:
        print_json(report)
    else:
        print_path(report.cache.folder)
