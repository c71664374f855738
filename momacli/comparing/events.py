"""Progress between processes: one line of JSON an event, on the standard error of the child."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from momacli.progress import Notice, Progress

VARIABLE = "MOMA_EVENTS"
"""Environment variable that, set to json, makes a command write events instead of text."""

_INTERVAL = 0.2  # seconds between two events of a stage


@dataclass(frozen=True)
class Peak:
    """Bytes of memory that a process has had at most; the last thing it says."""

    bytes: int
    gpu: int | None = None  # that torch had allocated on a GPU, where there was one


_KINDS: Mapping[str, type] = {"progress": Progress, "notice": Notice, "peak": Peak}


def encode(event: Progress | Notice | Peak) -> str:
    """An event as a line."""
    return json.dumps({type(event).__name__.lower(): asdict(event)})


def decode(line: str) -> Progress | Notice | Peak | None:
    """The event that a line is, or None for a line of text."""
    if not line.startswith('{"'):
        return None
    try:
        ((kind, content),) = json.loads(line).items()
        event: Progress | Notice | Peak = _KINDS[kind](**content)
    except (ValueError, KeyError, TypeError):
        return None
    return event


@dataclass
class Pace:
    """Lets through as many events of a stage as a reader can use, and always its last."""

    stage: str = ""
    due: float = field(default=0.0)

    def lets(self, event: Progress | Notice) -> bool:
        """Whether this one is to be handed on."""
        if isinstance(event, Notice):
            return True
        now = time.monotonic()
        if event.stage == self.stage and now < self.due and event.done < event.total:
            return False
        self.stage, self.due = event.stage, now + _INTERVAL
        return True
