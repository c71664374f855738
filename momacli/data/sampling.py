"""Which of many samples are used, chosen by a seed."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from momacli.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Sampling:
    """Use at most `count` samples of a task, or a share of them; the seed says which."""

    count: int | None = None
    share: float | None = None  # above 0, up to 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what leaves nothing. Raises UsageError."""
        if self.count is not None and self.count < 1:
            raise UsageError(f"at least 1 sample is needed, found {self.count}")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"a share is above 0 % and up to 100 %, found {100 * self.share:g} %")

    def of(self, items: Sequence[T], task: str) -> list[T]:
        """Return the chosen items in their own order; at least one.

        The choice for a task does not depend on the others, and a larger sample holds the
        smaller one.
        """
        wanted = len(items)
        if self.share is not None:
            wanted = min(wanted, max(1, round(self.share * len(items))))
        if self.count is not None:
            wanted = min(wanted, self.count)
        if wanted == len(items):
            return list(items)
        lots = sorted(range(len(items)), key=lambda index: _lot(self.seed, task, index))
        return [items[index] for index in sorted(lots[:wanted])]


def parse_share(text: str) -> float:
    """Read "10%" or "0.1". Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if found is None:
        raise UsageError(f"{text!r} is no share", hint="write one like 10% or 0.1")
    return float(found[1]) / (100 if found[2] else 1)


def _lot(seed: int, task: str, index: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{task}/{index}".encode(), digest_size=8).digest()
