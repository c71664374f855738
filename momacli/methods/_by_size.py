"""Whole tensors, and those too large to hold of all models at once: read twice, in pieces.

Where inner products decide on a tensor, those of its pieces add up to them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from momacli.checkpoint.arrays import Array
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import piece_size, read_blocks, stretch_size
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.spans import Span, spans
from momacli.checkpoint.writer import TensorSpec
from momacli.methods._sphere import products_around

LARGEST = 1 << 26
"""Elements of a tensor, of all models together, that are held at once: 268 MB of float32. Larger
ones are those of vocabularies, as a rule."""


@dataclass(frozen=True)
class BySize:
    """Reads the tensors of a plan."""

    plan: MergePlan
    center_of: Callable[..., Any] | None  # of the vectors whose inner products are all it takes
    options_of: Callable[[str], Mapping[str, Any]]  # that a tensor is merged with

    def is_large(self, spec: TensorSpec) -> bool:
        """Whether a tensor is read twice, in pieces."""
        plan, experts = self.plan, self.plan.experts
        if len(plan.checkpoints) * spec.elements <= LARGEST or self._center(spec.name) is None:
            return False
        return (
            len(experts) > 1
            and plan.tolerated is None
            and all(one.concurrent for one in plan.checkpoints)
            and not any(expert.is_task_vector for expert in experts)
            and all(
                expert.checkpoint.entries[spec.name].elements == spec.elements for expert in experts
            )
        )

    def read(
        self, wanted: Sequence[Span], *, piece: int | None, known: bool
    ) -> Iterator[tuple[Span, Block, dict[str, Any]]]:
        """Read spans, and tell what else a compiled pass is given of large tensors.

        piece, known: of other tensors, as for `read_blocks`.

        Raises ConflictError, naming the model, where a value is not finite.
        """
        for name, run in groupby(
            wanted, lambda span: span.spec.name if self.is_large(span.spec) else None
        ):
            of_it, more = list(run), dict[str, Any]()
            if name is not None:
                more["products"] = self._products(of_it[0].spec)
            cut = piece if name is None else piece_size(self.plan)
            for span, block in read_blocks(
                self.plan, of_it, piece=cut, known=known or name is not None
            ):
                yield span, block, more

    def _center(self, name: str) -> Any:
        return None if self.center_of is None else self.center_of(**self.options_of(name))

    def _products(self, spec: TensorSpec) -> Array:
        """The inner products of the experts' vectors [T, T], in float64."""
        center, T = self._center(spec.name), len(self.plan.experts)
        products = np.zeros((T, T))
        wanted = spans([spec], stretch_size(self.plan))
        for _, block in read_blocks(self.plan, wanted, piece=piece_size(self.plan)):
            assert block.thetas is not None
            products += products_around(center, block.theta_0, block.thetas)
        return products
