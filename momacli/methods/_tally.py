"""A sum over the whole vector: few blocks ask for its sign, and only the last one settles it.

So a pass that merges need not wait for it: it adds up what it sees, merges by a guess where it
must, and repeats in the end the blocks whose guess was wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from momacli.checkpoint.spans import Span


class Tally:
    """A sum over all entries of the vector, of which the sign is asked: 1, or -1 below zero.

    It is found by a pass of its own when it is first asked for; or on the way, between `begin`
    and `settle`, by a pass that adds each block. Until then answers are guesses, by the blocks
    that have passed. Whatever merges blocks with a statistic that has a tally adds each to it.
    """

    def __init__(self, count: Callable[[], int] = lambda: 0):
        """`count` takes the sum in a pass of its own."""
        self._count = count
        self._sum = 0
        self._known = False
        self._on_the_way = False
        self._guess: int | None = None

    @property
    def likely(self) -> int:
        """The sign of what is known of the sum, which costs nothing."""
        return 1 if self._sum >= 0 else -1

    @property
    def sign(self) -> int:
        """The sign of the sum, or a guess that is remembered."""
        if self._on_the_way:
            self._guess = self.likely
        elif not self._known:
            self.find()
        return self.likely

    def add(self, part: int) -> None:
        """Add the sum of the next block; only a pass that finds the sum on the way needs it."""
        if self._on_the_way:
            self._sum += part

    def find(self) -> None:
        """Count, in a pass of its own."""
        self._on_the_way = False
        self._sum, self._known = self._count(), True

    def begin(self) -> None:
        """Find the sum on the way from now on, unless it is known."""
        if not self._known:
            self._on_the_way, self._sum = True, 0

    def take_guess(self) -> int | None:
        """The guess since this was last asked; None if there was none."""
        guess, self._guess = self._guess, None
        return guess

    def settle(self) -> None:
        """Know the sum: every block has been added."""
        self._known, self._on_the_way = True, False

    def give_up(self) -> None:
        """Stop finding the sum on the way: some blocks will not come."""
        if self._on_the_way:
            self._on_the_way, self._sum = False, 0


def tally_of(statistic: Any) -> Tally | None:
    """The tally that a statistic has, if any."""
    found: Tally | None = getattr(statistic, "tally", None)
    return found


@dataclass(frozen=True)
class _Guessed:
    """Consecutive entries that were merged by the same guess."""

    span: Span
    guess: int
    changed: int  # how many of them differ from the base


class Guesses:
    """What a pass over every entry merges by guesses. Use as a context manager around it."""

    def __init__(self, statistics: Mapping[str, Any]):
        """Take the statistics of the pass, by tensor."""
        found = {name: tally_of(statistic) for name, statistic in statistics.items()}
        self._tallies = {name: tally for name, tally in found.items() if tally is not None}
        self._guessed: list[_Guessed] = []

    def note(self, span: Span, changed: int) -> None:
        """See if the block that was just merged was so by a guess, and remember it then."""
        tally = self._tallies.get(span.spec.name)
        guess = None if tally is None else tally.take_guess()
        if guess is None:
            return
        last = self._guessed[-1] if self._guessed else None
        if last and (last.span.spec, last.span.stop, last.guess) == (span.spec, span.start, guess):
            span = Span(span.spec, last.span.start, span.stop)
            self._guessed[-1] = _Guessed(span, guess, last.changed + changed)
        else:
            self._guessed.append(_Guessed(span, guess, changed))

    def settle(self) -> tuple[list[Span], int]:
        """When all have passed: what was guessed wrong, and how much of it was changed."""
        for tally in self._tallies.values():
            tally.settle()
        wrong = [x for x in self._guessed if x.guess != self._tallies[x.span.spec.name].sign]
        return [item.span for item in wrong], sum(item.changed for item in wrong)

    def __enter__(self) -> "Guesses":
        for tally in self._tallies.values():
            tally.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for tally in self._tallies.values():
            tally.give_up()
