"""How samples are read from files; imports no torch."""

from dataclasses import dataclass, field

from momacli.data.sampling import Sampling
from momacli.data.tables import Columns


@dataclass(frozen=True)
class Reading:
    """How samples are read.

    sampling: which of them are used; all by default.
    columns: of text files.
    max_length: tokens a text is cut to; by default as many as the model takes.
    strict: stop at the first sample that cannot be read instead of leaving it out.
    """

    sampling: Sampling = field(default_factory=Sampling)
    columns: Columns = field(default_factory=Columns)
    max_length: int | None = None
    strict: bool = False
