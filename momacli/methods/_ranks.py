"""Entries of a given rank, exactly, of arrays that are in memory."""

from typing import Any

import numpy as np

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


def entries_of_rank(values: Float[np.ndarray, "rows n"], rank: int) -> Float[np.ndarray, "rows 1"]:
    """Return the entry of this rank of each row, from 1, the smallest. Exactly."""
    if values.shape[-1] < 8 * _SAMPLED:
        parted: np.ndarray = np.partition(values, rank - 1, axis=-1)
        return parted[:, rank - 1 : rank]
    return np.array([[_entry_of_rank(row, rank)] for row in values])


def _entry_of_rank(values: Float[np.ndarray, " n"], rank: int) -> np.floating[Any]:
    """A sample says about where it lies; what lies there is then sorted out."""
    sample = np.sort(values[:: len(values) // _SAMPLED])
    place, margin = rank * len(sample) // len(values), int(_MARGIN * len(sample))
    low = sample[place - margin] if place >= margin else -np.inf
    high = sample[place + margin] if place + margin < len(sample) else np.inf
    wanted = rank - 1 - np.count_nonzero(values < low)
    near = values[np.flatnonzero((values >= low) & (values <= high))]
    if not 0 <= wanted < len(near):  # the sample misled
        near, wanted = values, rank - 1
    found: np.floating[Any] = np.partition(near, wanted)[wanted]
    return found
