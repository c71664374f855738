"""How samples are read from files; imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from momacli.data.sampling import Sampling
from momacli.data.tables import Columns
from momacli.errors import UsageError

Views = int | Literal["auto"]
"""A number of views of each image; as many as make few images enough."""


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    sampling: which of them are used; all by default.
    columns: of text files.
    max_length: tokens a text is cut to; by default as many as the model takes.
    strict: stop at the first sample that cannot be read instead of leaving it out.
    views: of each image, to be adapted to; of texts there is one.
    """

    sampling: Sampling = field(default_factory=Sampling)
    columns: Columns = field(default_factory=Columns)
    max_length: int | None = None
    strict: bool = False
    views: Views = 1


def check_views(views: Views) -> None:
    """Raises UsageError where they are no number of views."""
    if views != "auto" and (not isinstance(views, int) or views < 1):
        raise UsageError(f"views must be at least 1, or auto, found {views}")
