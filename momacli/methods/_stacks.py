"""The task vectors of a plan's tensors, as a first pass reads them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from momacli.checkpoint.arrays import Array, as_tensor
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import bytes_of, bytes_to_read, piece_size, read_blocks, stretch_size
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.spans import evenly_spread, spans
from momacli.checkpoint.writer import TensorSpec
from momacli.progress import Listener, Progress

if TYPE_CHECKING:
    from torch import Tensor


class StacksOfPlan:
    """The task vectors of some tensors, to be read block by block as often as needed."""

    def __init__(
        self, plan: MergePlan, specs: Sequence[TensorSpec], as_arrays: bool, listener: Listener
    ):
        self._plan, self._specs, self._listener = plan, specs, listener
        self._as_arrays = as_arrays
        self._passes = 0

    def __call__(self) -> "Iterator[Array | Tensor]":
        """Read all of them."""
        self._passes += 1
        stage, read = f"measuring, pass {self._passes}", 0.0
        sizes = bytes_to_read(self._plan)
        total = sum(sizes[spec.name] for spec in self._specs)
        wanted = spans(self._specs, stretch_size(self._plan))
        known, piece = self._passes > 1, piece_size(self._plan)
        for span, block in read_blocks(self._plan, wanted, piece=piece, known=known):
            yield self._given(block)
            read += bytes_of(sizes, span)
            self._listener(Progress(stage, round(read), total, "bytes"))

    def sample(self) -> "Iterator[Array | Tensor]":
        """Read runs of entries, evenly spread; of a small model, none."""
        for _, block in read_blocks(self._plan, evenly_spread(self._specs), ahead=False):
            yield self._given(block)

    def _given(self, block: Block) -> "Array | Tensor":
        return block.taus if self._as_arrays else as_tensor(block.taus)
