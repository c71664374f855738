"""Methods applied to parts of a tensor that is too large to hold of all models at once.

What decides on the whole tensor is measured first, part by part; then each part is merged, to the
result that the tensor would have as a whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.arrays import Array
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import piece_size, read_blocks, stretch_size
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.spans import Span, evenly_spread, spans
from momacli.checkpoint.writer import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


class TensorParts:
    """One tensor of all models, to be read part by part as often as needed."""

    def __init__(
        self,
        plan: MergePlan,
        spec: TensorSpec,
        parts: "Parts",
        given: "Callable[[Array], Array | Tensor]",
    ):
        """parts: how the method takes them; given: values as it takes them."""
        self._plan, self._spec, self._given = plan, spec, given
        self._rows, self._small = parts.rows, parts.compiled
        self.passes = 0  # that have begun

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""
        return self._spec.shape

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self._plan.experts)

    def spans(self) -> list[Span]:
        """Where the parts are; those of rows hold whole ones."""
        size = stretch_size(self._plan)
        if self._rows:
            row = max(1, self._spec.elements // self._spec.shape[0])
            size = max(1, size // row) * row
        return spans([self._spec], size)

    def blocks(self) -> Iterator[tuple[Span, Block]]:
        """Read all of them; for a compiled pass by pieces that stay in the processor's cache."""
        self.passes += 1
        piece = piece_size(self._plan) if self._small else None
        return read_blocks(self._plan, self.spans(), piece=piece, known=self.passes > 1)

    def __call__(self) -> Iterator[Array]:
        """Read the task vectors [T, n] of all of them."""
        for _, block in self.blocks():
            yield block.taus

    def matrices(self) -> "Iterator[tuple[Tensor, Tensor]]":
        """Read rows of the base [rows, n] and of the task vectors [T, rows, n], of a matrix."""
        n = self.shape[1]
        for _, block in self.blocks():
            theta_0, taus = block.theta_0.reshape(-1, n), block.taus
            given: list[Any] = [self._given(theta_0), self._given(taus.reshape(len(taus), -1, n))]
            yield given[0], given[1]

    def sample(self) -> Iterator[Array]:
        """Read task vectors [T, n] of runs of entries, evenly spread; of a small tensor, none."""
        for _, block in read_blocks(self._plan, evenly_spread([self._spec]), ahead=False):
            yield block.taus


@dataclass(frozen=True)
class Parts:
    """How a method takes parts of a tensor, where its result of each entry depends on others.

    measure: finds what the method is given of the whole tensor, as further arguments.
    rows: whether parts must hold whole rows: all there is of an index of the first dimension.
    tall: whether only matrices that are at least as high as wide can be taken in parts; a tensor
        that is no matrix is merged entry by entry, with nothing measured.
    compiled: whether only the method's `one_pass` takes them, to which models are given, not
        task vectors.
    """

    measure: Callable[[TensorParts], Mapping[str, Any]] | None = None
    rows: bool = False
    tall: bool = False
    compiled: bool = False

    def of(self, shape: Sequence[int]) -> "Parts | None":
        """The same for a tensor of this shape; None where it has to be held as a whole."""
        if self.tall and len(shape) != _OF_MATRIX:
            return Parts()
        too_wide = self.tall and shape[0] < shape[1]
        return None if too_wide or (self.rows and len(shape) < _OF_MATRIX) else self


_OF_MATRIX = 2
"""Dimensions."""
