"""Random choices that do not depend on how a tensor is split, on threads or on other tensors.

Philox (Salmon et al. 2011) turns a key and a counter into random bits; the key here is the
seed, the expert and the tensor.
"""

import hashlib

import numpy as np
from jaxtyping import Float, Int64

_FAR = 2.0**53
"""No tensor has as many entries."""

_STRETCH = 1 << 16
"""Entries to choose among at a time, at least."""


class Draws:
    """The random choices for one expert and one tensor, entry after entry."""

    def __init__(self, key: str):
        """key: whatever must be the same for the choices to be the same."""
        digest = hashlib.sha256(key.encode()).digest()
        bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        self._numbers = np.random.Generator(bits)
        self._start = 0  # the next entry
        self._places = np.empty(0, dtype=np.int64)  # entries to keep from there on, as far as known
        self._reached = -1  # the last of them ever

    def kept(self, count: int, keep: float) -> Int64[np.ndarray, " kept"]:
        """Choose which of the next `count` entries to keep, each with probability `keep`.

        Between two that are kept lies a geometric number of others, so that few numbers are
        drawn where few are kept. `keep` must be above 0, and the same in every call.
        """
        stop = self._start + count
        while self._reached < stop - 1:
            self._reach(stop, keep)
        here = int(np.searchsorted(self._places, stop))
        chosen = self._places[:here] - self._start
        self._places, self._start = self._places[here:], stop
        return chosen

    def _reach(self, stop: int, keep: float) -> None:
        with np.errstate(divide="ignore"):
            rate = -np.log1p(-np.float64(keep))  # infinite where all are kept
        number = int(keep * max(_STRETCH, stop - self._reached)) + 16
        gaps = self._numbers.standard_exponential(number) / rate
        steps = np.minimum(gaps, _FAR).astype(np.int64) + 1
        places = self._reached + np.cumsum(steps)
        self._places = np.concatenate([self._places, places])
        self._reached = int(places[-1])

    def uniform(self, count: int) -> Float[np.ndarray, " n"]:
        """Draw one float32 number from [0, 1) for each of the next `count` entries."""
        return self._numbers.random(count, dtype=np.float32)
