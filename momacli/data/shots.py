"""A few labeled samples of each class: how many, and which."""

from collections.abc import Sequence
from dataclasses import dataclass

from momacli.data.sampling import Sampling, parse_share
from momacli.errors import UsageError


@dataclass(frozen=True)
class Shots:
    """So many samples of each class, or a share of those there are."""

    count: int | None = None
    share: float | None = None  # above 0, up to 1

    def __str__(self) -> str:
        """As `parse_shots` reads it."""
        return str(self.count) if self.share is None else f"{100 * self.share:g}%"


def parse_shots(text: str) -> tuple[Shots, ...]:
    """Read "1,5,10%". Raises UsageError."""
    found = []
    for word in text.split(","):
        word = word.strip()
        if word.isdecimal() and int(word) > 0:
            found.append(Shots(count=int(word)))
        elif word.endswith("%") and 0 < (share := parse_share(word)) <= 1:
            found.append(Shots(share=share))
        else:
            raise UsageError(
                f"{word!r} is no number of samples of each class",
                hint="write numbers and shares like 1,5,10%",
            )
    return tuple(dict.fromkeys(found))


def few_of_each(
    labels: Sequence[int], shots: Shots, *, seed: int, task: str, among: Sequence[int] | None = None
) -> list[int]:
    """Choose samples of each class; returns their places, ascending.

    A class has at least one if it has any; of one that has fewer, all. A larger choice of the
    same seed holds the smaller one.

    among: the places to choose from; all by default.
    """
    places = _by_class(labels, range(len(labels)) if among is None else among)
    chosen: list[int] = []
    for label, own in places.items():
        lots = Sampling(shots.count, shots.share, seed)
        chosen += lots.of(own, f"{task}/{label}")
    return sorted(chosen)


def two_parts(
    labels: Sequence[int], share: float, *, seed: int, task: str
) -> tuple[list[int], list[int]]:
    """Split samples class by class; returns the places in the first part and in the second.

    share: of the first part, between 0 and 1. A class of two or more is in both parts, a single
    sample in the second.
    """
    first: list[int] = []
    for label, own in _by_class(labels, range(len(labels))).items():
        if len(own) > 1:
            count = min(len(own) - 1, max(1, round(share * len(own))))
            first += Sampling(count, None, seed).of(own, f"{task}/{label}")
    taken = set(first)
    return sorted(first), [place for place in range(len(labels)) if place not in taken]


def _by_class(labels: Sequence[int], among: Sequence[int]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place in among:
        places.setdefault(labels[place], []).append(place)
    return places
