"""NaN and infinity in inputs, where the user lets a merge go on in spite of them.

Entries that are not finite in the base or in any expert are taken from the base; the method
sees zeros there, so that not every method has to know of them. All of it is counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.checkpoint.escaping import shown

_NAMED = 3
"""Tensors of each file that a remark names."""


@dataclass(frozen=True)
class SetAside:
    """The entries of a block that a method does not see, and what the base holds there."""

    where: Array  # [k] positions
    theta_0: Array  # [k]

    def restore(self, merged: Array) -> None:
        """Write the base's values to their places in a merged block."""
        merged[self.where] = self.theta_0.astype(merged.dtype)


class Tolerated:
    """What was not finite and where; counted once, however often it is read."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, int], int] = {}  # file, tensor, start -> entries

    def set_aside(
        self, names: Sequence[str], key: str, start: int, theta_0: Array, taus: Array
    ) -> SetAside | None:
        """Put zeros where a value of a block is not finite; None where there is none such.

        names: of the base and of each expert. What an expert holds where the base is not
            finite is not counted: only the difference is at hand, and that tells nothing.
        """
        sound = np.isfinite(theta_0)
        fine = np.isfinite(taus)
        for name, good in zip(names, [sound, *(fine | ~sound)], strict=True):
            self.count(name, key, int(np.count_nonzero(~good)), start)
        where = np.flatnonzero(~(sound & fine.all(axis=0)))
        if not len(where):
            return None
        kept = SetAside(where, theta_0[where])
        theta_0[where] = 0
        taus[:, where] = 0
        return kept

    def count(self, name: str, key: str, entries: int, start: int = 0) -> None:
        """Remember that a tensor of a file holds so many entries that are not finite."""
        if entries:
            self._found[name, key, start] = entries

    def join(self, other: "Tolerated") -> None:
        """Take in what was found in other tensors of the same files."""
        self._found |= other._found

    def remarks(self) -> list[str]:
        """One line a file: how much of it was not finite, in which tensors."""
        tables: dict[str, Counter[str]] = {}
        for (name, key, _), entries in sorted(self._found.items()):
            tables.setdefault(name, Counter())[key] += entries
        lines = []
        for name, tensors in tables.items():
            keys = [shown(key) for key in list(tensors)[:_NAMED]]
            more = len(tensors) - len(keys)
            where = ", ".join(keys) + (f" and {more} more" if more else "")
            lines.append(f"{name}: {tensors.total()} values are NaN or infinity, in {where}")
        return lines
