"""Entries of a given rank, exactly, of arrays that are in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from momacli.compiled.selection import pick_between
from momacli.shapes import Float

_MARGIN = 0.01
"""Share of all entries that is looked at on each side of where a sample puts the rank."""

_SAMPLED = 1 << 14
"""Entries of a sample of one row."""


def count_to_keep(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: floor(density * size), at least one if any."""
    if size == 0 or density <= 0:
        return 0
    return min(size, max(1, int(density * size)))


def entries_of_rank(values: Float[np.ndarray, "rows n"], rank: int) -> Float[np.ndarray, " rows"]:
    """Return the entry of this rank of each row, from 1, the smallest. Exactly."""
    found: np.ndarray = entries_of_ranks(values, [rank])[0]
    return found


def entries_of_ranks(
    values: Float[np.ndarray, "rows n"], ranks: Sequence[int]
) -> Float[np.ndarray, "ranks rows"]:
    """The same of several ranks."""
    if values.shape[-1] < 8 * _SAMPLED:
        places = [rank - 1 for rank in ranks]
        parted: np.ndarray = np.partition(values, places, axis=-1)
        return np.transpose(parted[:, places])
    found = [_entries_of_ranks(np.ascontiguousarray(row), ranks) for row in values]
    return np.transpose(np.array(found))


def _entries_of_ranks(
    values: Float[np.ndarray, " n"], ranks: Sequence[int]
) -> list[np.floating[Any]]:
    """A sample says about where they lie; what lies there is then sorted out."""
    sample = np.sort(values[:: len(values) // _SAMPLED])
    margin = int(_MARGIN * len(sample))
    picked, below = np.empty_like(values), np.empty(1, np.int64)
    found: list[np.floating[Any]] = []
    for rank in ranks:
        place = rank * len(sample) // len(values)
        low = sample[place - margin] if place >= margin else -np.inf
        high = sample[place + margin] if place + margin < len(sample) else np.inf
        near = picked[: pick_between(values, float(low), float(high), picked, below)]
        wanted = rank - 1 - int(below[0])
        if not 0 <= wanted < len(near):  # the sample misled
            near, wanted = values, rank - 1
        found.append(np.partition(near, wanted)[wanted])
    return found
