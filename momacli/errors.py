"""Every error moma raises on purpose.

    MomaError                what happened, where, expected and found, and what to do
    ├── UsageError           the call itself makes no sense (exit status 2)
    ├── CheckpointError      a file is damaged, missing, or not what it claims to be
    ├── ConflictError        inputs are sound by themselves but do not fit each other
    ├── ModelError           an architecture is unknown, or its parts were not found
    ├── DataError            a data folder does not hold what the task needs
    ├── OutputError          the result cannot be written where it was asked for
    ├── DivergenceError      an optimization produced NaN or infinity
    └── OutOfMemoryError     a device has less memory than the work needs

The command line turns them into a line or two on stderr; a library user catches `MomaError`.
"""

from collections.abc import Sequence


class MomaError(Exception):
    """An expected failure, explained to the person who can mend it.

    `message` is one sentence naming the file or option; `details` are further lines, one
    conflict each; `hint` says what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, details: Sequence[str] = (), hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.hint = hint

    def __str__(self) -> str:
        """All of it as text: message, indented details, hint."""
        lines = [self.message, *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class UsageError(MomaError):
    """The call itself makes no sense: an unknown option, two that exclude each other."""

    exit_code = 2


class CheckpointError(MomaError):
    """A checkpoint file is damaged, missing, or not what it claims to be."""


class ConflictError(MomaError):
    """Inputs are sound by themselves but do not fit each other; `details` lists every one."""


class ModelError(MomaError):
    """An architecture is unknown, or its encoder or head could not be found."""


class DataError(MomaError):
    """A data folder does not hold what the task needs."""


class OutputError(MomaError):
    """The result cannot be written where it was asked for."""


class DivergenceError(MomaError):
    """An optimization produced NaN or infinity."""


class OutOfMemoryError(MomaError):
    """A device has less memory than the work needs."""
