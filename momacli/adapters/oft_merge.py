"""OFT adapters of one layout merged as what they are: rotations, in the Lie algebra.

OrthoMerge (Yang et al. 2026, arXiv:2602.05943): the skew-symmetric Q_t of each layer are summed
at their mean norm, and the base is turned by what that generates. What the adapters hold beside
rotations, such as biases, is averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from momacli.adapters.changes import generators, rotating
from momacli.adapters.checkpoint import AdaptedCheckpoint
from momacli.adapters.config import Oft
from momacli.adapters.layout import Layout, Rotation
from momacli.checkpoint.plan import Expert
from momacli.methods._oft import merge_oft
from momacli.methods._streaming import StreamedMerge
from momacli.progress import Listener, Notice

if TYPE_CHECKING:
    from momacli.adapters.changes import Rows

MERGED = {"rotations": "of the OFT adapters, merged in the Lie algebra"}
"""What a recipe and a summary say of such a merge; it has no options."""


class MergedRotations(AdaptedCheckpoint):
    """The base, turned by the merged rotations of several adapters of one layout."""

    def __init__(self, adapted: Sequence[AdaptedCheckpoint]):
        first = adapted[0]
        turned = {k: c for k, c in first.layout.changes.items() if isinstance(c, Rotation)}
        wanted = first.base.entries.keys() & first.entries.keys()
        layout = Layout(changes=turned)
        super().__init__(first.base, first.adapter, first.config, layout, None, wanted)
        self.path = Path(f"the rotations of {len(adapted)} adapters")
        self.leaves = tuple(one.adapter for one in adapted)
        self._experts = tuple(adapted)
        self._averaged = {key for one in adapted for key in one.layout.changes} - turned.keys()

    def read_range(self, key: str, start: int, stop: int) -> Tensor:
        """Compute elements start to stop of one tensor, in float32 or better."""
        if key not in self._averaged:
            return super().read_range(key, start, stop)
        parts = [one.read_range(key, start, stop) for one in self._experts]
        if not parts[0].is_floating_point():
            return self.base.read_range(key, start, stop)
        return torch.stack([part.double() for part in parts]).mean(dim=0).to(self._dtype(key))

    def is_the_base_s(self, key: str) -> bool:
        """Whether no adapter changes a tensor."""
        return key not in self._averaged and super().is_the_base_s(key)

    def _ready(self, key: str) -> "Rows":
        changes = [(one.layout.changes[key], one.adapter.read) for one in self._experts]
        entries = [generators(c, read) for c, read in changes if isinstance(c, Rotation)]
        change = self.layout.changes[key]
        assert isinstance(change, Rotation)
        merged = merge_oft(torch.stack(entries)) if len(entries) > 1 else entries[0]
        return rotating(merged, change)


@dataclass(frozen=True)
class OftMerge(StreamedMerge):
    """A merge whose arithmetic is done by `MergedRotations`: it stands as the only expert."""

    @property
    def parameters(self) -> dict[str, Any]:
        """That it is one; there are no options."""
        return dict(MERGED)


def in_lie_algebra(work: StreamedMerge, listener: Listener) -> StreamedMerge:
    """The same merge by `orthomerge` in the Lie algebra, where all experts are OFT adapters.

    Where they are of different layouts, or options are given that only weights have, it stays
    as it is, and the listener is told.
    """
    checkpoints = [expert.checkpoint for expert in work.plan.experts]
    adapted = [
        one
        for one in checkpoints
        if isinstance(one, AdaptedCheckpoint) and isinstance(one.config.method, Oft)
    ]
    if not adapted:
        return work
    reason = None
    if len(adapted) < len(checkpoints):
        reason = "not all experts are OFT adapters"
    elif any(_rotations(one) != _rotations(adapted[0]) for one in adapted):
        reason = "the OFT adapters differ in their blocks or settings"
    elif work.options or work.settings:
        reason = "options of orthomerge for weights were given"
    if reason is not None:
        listener(Notice(f"{reason}: the rotations are found in the weights, as for any expert"))
        return work
    merged = Expert(MergedRotations(adapted), {})
    method = replace(work.method, function=_whole, elementwise=True, parameters={})
    return OftMerge(
        replace(work.plan, experts=(merged,)),
        method,
        work.options,
        work.weights,
        work.scope,
        work.seed,
        work.settings,
    )


def _rotations(adapted: AdaptedCheckpoint) -> Mapping[str, tuple[Oft, bool, tuple[int, ...]]]:
    """What two adapters must have in common: the blocks of each tensor, and what they mean."""
    return {
        key: (change.settings, change.embedding, adapted.adapter.entries[change.entries].shape)
        for key, change in adapted.layout.changes.items()
        if isinstance(change, Rotation)
    }


def _whole(task_vectors: Tensor) -> Tensor:
    return task_vectors[0]
