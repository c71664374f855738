"""What looks like a mistake in the choice of the inputs, noticed while they are merged.

Each question is dropped at the first block that answers it; norms come from the beginning of
each tensor, which costs next to nothing and is enough to tell far from near.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from momacli.checkpoint.block import Block

_SAMPLED = 1 << 11
"""Entries of a tensor whose norms are taken."""


class Suspicion:
    """Sees every block of task vectors once."""

    def __init__(self, T: int):
        self._zero = set(range(T))  # task vectors without an entry other than zero so far
        self._same = set(combinations(range(T), 2))  # pairs without a difference so far
        self._squares = np.zeros(T)  # |tau_t|^2, about
        self._base_square = 0.0  # |theta_0|^2, about

    def see(self, block: Block, *, opens: int = 0) -> None:
        """Take in one block.

        opens: of the first block of a tensor, how many entries the tensor has.
        """
        for count in (_SAMPLED, block.theta_0.shape[0]):  # the beginning answers, as a rule
            if self._zero or self._same:
                taus = block.first_taus(count)
                self._zero = {t for t in self._zero if not taus[t].any()}
                self._same = {(s, t) for s, t in self._same if np.array_equal(taus[s], taus[t])}
        if not opens:
            return
        share = opens / min(block.theta_0.shape[0], _SAMPLED)
        sampled = block.first_taus(_SAMPLED).astype(np.float64)
        base = block.theta_0[:_SAMPLED].astype(np.float64)
        self._squares += share * np.square(sampled).sum(axis=1)
        self._base_square += share * float(np.square(base).sum())

    def join(self, other: "Suspicion") -> None:
        """Take in what was seen of other tensors of the same models."""
        self._zero &= other._zero
        self._same &= other._same
        self._squares = self._squares + other._squares
        self._base_square += other._base_square

    def remarks(self, names: Sequence[str]) -> Iterator[str]:
        """What was noticed, and what it probably means. The base's norm of 0 tells nothing."""
        for t, name in enumerate(names):
            if t in self._zero:
                yield (
                    f"{name} equals the base: its task vector is zero. "
                    "Was the base given twice, or was nothing trained?"
                )
            elif self._squares[t] > self._base_square > 0:
                yield (
                    f"the task vector of {name} is larger than the base itself: "
                    "was it fine-tuned from another base?"
                )
        for s, t in sorted(self._same):
            if s not in self._zero:
                yield (
                    f"{names[s]} and {names[t]} are the same model, which counts twice now: "
                    "was one copied over the other?"
                )
