"""Whole tensors, and those too large to hold of all models at once: measured and merged in parts.

How a method takes parts, if it does, its module's `in_parts` says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.ahead import is_wide
from momacli.checkpoint.arrays import Array
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import read_blocks
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.spans import Span
from momacli.checkpoint.writer import TensorSpec
from momacli.methods._parts import Parts, TensorParts

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1 << 26
"""Elements of a tensor, of all models together, that are held at once: 268 MB of float32. Larger
ones are those of vocabularies, as a rule."""


@dataclass(frozen=True)
class BySize:
    """Reads the tensors of a plan."""

    plan: MergePlan
    parts_of: Callable[[TensorSpec], Parts | None]  # how the method takes a tensor's
    given: "Callable[[Array], Array | Tensor]"  # values as the method takes them
    _known: dict[str, Parts | None] = field(default_factory=dict)  # by tensor

    def large(self, spec: TensorSpec) -> Parts | None:
        """How a tensor is read, in parts; None where it is held as a whole."""
        if spec.name not in self._known:
            self._known[spec.name] = self._large(spec)
        return self._known[spec.name]

    def _large(self, spec: TensorSpec) -> Parts | None:
        plan = self.plan
        if len(plan.checkpoints) * spec.elements <= LARGEST:
            return None
        if plan.tolerated is not None or not all(one.concurrent for one in plan.checkpoints):
            return None
        parts = self.parts_of(spec)
        parts = None if parts is None else parts.of(spec.shape)
        if parts is None:
            return None
        fits = self._has_models_alone(spec) if parts.compiled else not is_wide(plan)
        return parts if fits else None

    def spans(self, spec: TensorSpec) -> list[Span] | None:
        """The parts of a large tensor; None of another."""
        parts = self.large(spec)
        return None if parts is None else self._parts(spec, parts).spans()

    def shape(self, span: Span) -> tuple[int, ...]:
        """The shape of what a span holds: flat, if that is neither all nor whole rows."""
        spec = span.spec
        if span.length == spec.elements:
            return spec.shape
        parts = self.large(spec)
        if parts is not None and parts.rows:
            return (span.length * spec.shape[0] // spec.elements, *spec.shape[1:])
        return (span.length,)

    def read(
        self, wanted: Sequence[Span], *, piece: int | None, known: bool
    ) -> Iterator[tuple[Span, Block, dict[str, Any]]]:
        """Read spans, and tell what else the method is given of large tensors.

        piece, known: of other tensors, as for `read_blocks`. Of a large tensor, all its spans
            are wanted.

        Raises ConflictError, naming the model, where a value is not finite.
        """
        for large, run in groupby(
            wanted, lambda span: span.spec if self.large(span.spec) is not None else None
        ):
            of_it = list(run)
            parts = None if large is None else self.large(large)
            if large is None or parts is None:
                for span, block in read_blocks(self.plan, of_it, piece=piece, known=known):
                    yield span, block, {}
                continue
            tensor = self._parts(large, parts)
            more = {} if parts.measure is None else dict(parts.measure(tensor))
            for span, block in tensor.blocks():
                yield span, block, more

    def _parts(self, spec: TensorSpec, parts: Parts) -> TensorParts:
        return TensorParts(self.plan, spec, parts, self.given)

    def _has_models_alone(self, spec: TensorSpec) -> bool:
        """Whether there are several experts, no task vector among them, and all have all of it."""
        experts = self.plan.experts
        return len(experts) > 1 and all(
            not expert.is_task_vector
            and expert.checkpoint.entries[spec.name].elements == spec.elements
            for expert in experts
        )
