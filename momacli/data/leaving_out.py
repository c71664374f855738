"""What becomes of a sample that cannot be read: refused, or left out, counted and named."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from momacli.errors import DataError
from momacli.progress import Listener, Notice

LeaveOut = Callable[[str], None]
"""Told what cannot be read and why; returns if it may be passed over."""


def refuse(problem: str) -> NoReturn:
    """Pass nothing over. Raises DataError."""
    raise DataError(problem, hint="mend or remove it; without --strict it would be left out")


class LeftOut:
    """Counts what was passed over, and keeps the first few to be named."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def __call__(self, problem: str) -> None:
        """Pass one thing over."""
        self.count += 1
        if len(self._first) < 3:
            self._first.append(problem)

    def tell(self, listener: Listener, whose: Path) -> None:
        """Say how much was left out, if anything was."""
        if self.count:
            parts = "1 part" if self.count == 1 else f"{self.count} parts"
            listener(Notice(f"left out {parts} of {whose}: {'; '.join(self._first)}"))
