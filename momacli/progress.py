"""Progress as a stream of small values; whoever shows it decides how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """How far one stage of a run is."""

    stage: str  # what is being done: "merging", "aligning", ...
    done: int
    total: int
    unit: str  # of done and total: "bytes", "steps", "images"
    values: Mapping[str, float] = field(default_factory=dict)  # such as the loss of each task
    samples: int = 0  # that went by in this stage and run, where that is not `done` itself


@dataclass(frozen=True)
class Notice:
    """Something the user should know and the run can live with."""

    text: str


Listener = Callable[[Progress | Notice], None]


def ignore(event: Progress | Notice) -> None:
    """Listen to nothing."""
