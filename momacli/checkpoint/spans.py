"""Stretches of tensors: where in a model to read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from momacli.checkpoint.reader import iterate_blocks
from momacli.checkpoint.writer import TensorSpec

_RUNS, _RUN = 1 << 10, 1 << 9
"""Runs of a sample, and the elements of each."""


@dataclass(frozen=True)
class Span:
    """Consecutive elements of one tensor to be merged, in row-major order."""

    spec: TensorSpec
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.stop - self.start


def spans(specs: Iterable[TensorSpec], size: int | None) -> list[Span]:
    """Split tensors in spans of at most `size` elements; None for one span a tensor."""
    found = []
    for spec in specs:
        whole = max(1, spec.elements)
        found += [Span(spec, a, b) for a, b in iterate_blocks(spec.elements, size or whole)]
    return found


def pieces(whole: Span, size: int) -> list[Span]:
    """Split a span in spans of at most `size` elements."""
    ranges = iterate_blocks(whole.length, size)
    return [Span(whole.spec, whole.start + a, whole.start + b) for a, b in ranges]


def evenly_spread(specs: Sequence[TensorSpec]) -> list[Span]:
    """Runs of elements at equal distances, about half a million in all; none of a small model."""
    stride = sum(spec.elements for spec in specs) // _RUNS
    if stride < 8 * _RUN:
        return []
    found, before = [], 0
    for spec in specs:
        for start in range(-before % stride, spec.elements, stride):
            found.append(Span(spec, start, min(start + _RUN, spec.elements)))
        before += spec.elements
    return found
