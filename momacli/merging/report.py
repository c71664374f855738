"""What a merge did, or would do."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or with dry_run would do."""

    output: Path
    method: str
    parameters: Mapping[str, Any]  # the method's, defaults included
    base: Path
    tasks: tuple[str, ...]
    merged: int  # tensors
    copied: tuple[str, ...]  # tensors taken from the base: integers and what was excluded
    carried: int  # head tensors, of all tasks together
    left_out: tuple[str, ...]  # tensors of experts that are not in the output
    base_head: tuple[str, ...]  # tensors of the base's own head, not in the output either
    merged_parameters: int
    nbytes: int  # of the output's tensors
    changed_share: float | None  # of the merged parameters, how many differ from the base
    seconds: float
    bytes_read: int  # of the tensors merged, in base and experts, once
    memory: int  # bytes: the process's peak, or with dry_run what to expect
    estimate: float | None = None  # with dry_run: seconds, where the method lets one tell
    stored_bits: int | None = None  # that tell the tasks apart, where the method makes one of each
    dry_run: bool = False
    samples: Mapping[str, int] = field(default_factory=dict)  # by task, where some were seen
    coefficients: Mapping[str, float] = field(default_factory=dict)  # learned: a task's mean


def peak_memory() -> int:
    """Bytes of memory this process has had at most, shared libraries included; 0 if unknown.

    Not ru_maxrss where Linux tells better: a new process starts out with that of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
