"""Checkpoints that are nowhere on disk: their tensors are computed when they are read.

They read like files, so that one merge can be an input of the next. One tensor is held at a
time, whatever the size of the model.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from momacli.checkpoint.arrays import Array, array_dtype, as_array, as_tensor, fill
from momacli.checkpoint.description import Description
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import MERGEABLE_DTYPES, TensorEntry
from momacli.checkpoint.judging import rounded
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError, UsageError
from momacli.progress import Listener
from momacli.recipes.layers import is_before_layers, joined, layer_lists, split_layer

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.methods._streaming import StreamedMerge


class ComputedCheckpoint(Checkpoint):
    """What all of them share: the checkpoints on disk that they are computed from."""

    def __init__(self, name: str, leaves: Sequence[Checkpoint], description: Description | None):
        super().__init__(Path(name), name, ())
        self.leaves = tuple({id(leaf): leaf for leaf in leaves}.values())
        self.description = description

    @cached_property
    def is_folder(self) -> bool:
        """Whether all it is computed from are model folders."""
        return all(leaf.is_folder for leaf in self.leaves)

    @property
    def metadata(self) -> Mapping[str, str]:
        """None: it has no recipe of its own, its description is an attribute."""
        return {}

    @property
    def stands_for(self) -> Checkpoint | None:
        """The checkpoint on disk with tensors of the same names and shapes, if there is one."""
        return None

    def start_hash(self) -> None:
        """Hash what is read of the files from now on."""
        for leaf in self.leaves:
            leaf.start_hash()

    def sha256(self) -> dict[str, str]:
        """SHA-256 of the files that it is computed from."""
        return {
            str(leaf.path / name): d for leaf in self.leaves for name, d in leaf.sha256().items()
        }

    concurrent = False  # several may be computed from one file

    def read_array(self, key: str) -> Array:
        """Like `read`, as an array."""
        return as_array(self.read(key))

    def read_in_parts(self, key: str) -> Iterator[Array]:
        """All of a tensor at once: it is computed as a whole."""
        yield self.read_array(key)

    def read_to(self, out: Array, key: str, start: int) -> None:
        """Fill `out`, flat, with the elements from `start` on."""
        fill(out, as_array(self.read_range(key, start, start + out.size)))

    def close(self) -> None:
        """Do nothing: whoever opened the files closes them."""


class MergedCheckpoint(ComputedCheckpoint):
    """The result of a merge, in float32 or better where it is read in ranges.

    `read` rounds to the type that the result would have on disk; `read_range` does not, so
    that what is merged further is rounded once, at the end.
    """

    def __init__(
        self,
        name: str,
        work: "StreamedMerge",
        specs: Sequence[TensorSpec],
        tasks: Sequence[Expert],
        descriptions: Mapping[str, Description | None],
        description: Description | None,
        listener: Listener,
    ):
        """Wrap a merge whose plan has the types to compute in; `specs` has those on disk."""
        plan = work.plan
        inputs = plan.checkpoints
        super().__init__(name, [leaf for item in inputs for leaf in files_of(item)], description)
        self.tasks = tuple(tasks)
        self.descriptions = descriptions
        self._work = work
        self._listener = listener
        self._specs = {spec.name: spec for spec in specs}
        self._wide = {spec.name: spec for spec in plan.merged}
        self._last: tuple[str, Array] | None = None

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor as it would be on disk."""
        return {
            key: TensorEntry(key, spec.dtype, spec.shape, 0, spec.nbytes)
            for key, spec in self._specs.items()
        }

    @property
    def stands_for(self) -> Checkpoint | None:
        """The base's, for the result has its tensors."""
        return on_disk(self._work.plan.base)

    def renamed(self, name: str) -> "MergedCheckpoint":
        """The same result by the name of another task."""
        other = copy.copy(self)
        other.name = name
        return other

    def read(self, key: str) -> "Tensor":
        """Compute one tensor and round it to its type."""
        if key not in self._wide:
            return self._work.plan.base.read(key)
        spec = self._specs[key]
        return as_tensor(rounded(self._values(key), spec).reshape(spec.shape))

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Compute elements start to stop of one tensor, in float32 or better."""
        if key not in self._wide:
            return self._work.plan.base.read_range(key, start, stop)
        return as_tensor(self._values(key)[start:stop])

    @cached_property
    def _statistics(self) -> dict[str, Any]:
        return self._work.statistics(self._listener)

    def _values(self, key: str) -> Array:
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        self._last = last = None  # its memory goes before the next tensor comes
        spec = self._wide[key]
        result = np.empty(spec.elements, dtype=array_dtype(spec.dtype, key))
        position = 0
        for part in self._work.tensor(spec, self._statistics.get(key)):
            result[position : position + part.values.size] = part.values
            position += part.values.size
        self._last = (key, result)
        return result


class OriginCheckpoint(ComputedCheckpoint):
    """Zeros in the shape of a model; tensors that are not merged are the model's own."""

    def __init__(self, source: Checkpoint, description: Description | None):
        super().__init__(source.name, files_of(source), description)
        self._source = source

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Those of the model."""
        return self._source.entries

    @property
    def stands_for(self) -> Checkpoint | None:
        """The model."""
        return on_disk(self._source)

    def read(self, key: str) -> "Tensor":
        """Read a tensor of the model as it is."""
        return self._source.read(key)

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Return zeros for what is merged."""
        import torch

        from momacli.checkpoint.dtypes import torch_dtype

        dtype = self.entries[key].dtype
        if dtype not in MERGEABLE_DTYPES:
            return self._source.read_range(key, start, stop)
        return torch.zeros(stop - start, dtype=torch_dtype(dtype, key))


class StackedCheckpoint(ComputedCheckpoint):
    """Layers of several models one above the other, numbered anew from 0."""

    def __init__(
        self,
        name: str,
        pieces: Sequence[tuple[Checkpoint, int, int]],  # model, first layer, after the last
        description: Description | None,
    ):
        """Raise ConflictError if a model has no such layers."""
        super().__init__(name, [piece[0] for piece in pieces], description)
        self._own: dict[str, tuple[Checkpoint, str]] = {}
        position = 0
        for number, (checkpoint, start, stop) in enumerate(pieces):
            before = layer_list(checkpoint, stop)
            for key in checkpoint.entries:
                split = split_layer(key)
                if split is None or split[0] != before:
                    outside = number == 0 if is_before_layers(key) else number == len(pieces) - 1
                    if outside:
                        self._own[key] = (checkpoint, key)
                elif start <= split[1] < stop:
                    new = joined(before, position + split[1] - start, split[2])
                    self._own[new] = (checkpoint, key)
            position += stop - start

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The models' entries by their new names."""
        found = {}
        for key, (checkpoint, own) in self._own.items():
            entry = checkpoint.entries[own]
            found[key] = TensorEntry(key, entry.dtype, entry.shape, entry.start, entry.stop)
        return found

    def read(self, key: str) -> "Tensor":
        """Read one tensor."""
        checkpoint, own = self._own[key]
        return checkpoint.read(own)

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Read elements start to stop of one tensor."""
        checkpoint, own = self._own[key]
        return checkpoint.read_range(own, start, stop)


def layer_list(checkpoint: Checkpoint, stop: int = 0) -> str:
    """What precedes the number of a layer in the names of a model's tensors.

    Raises ConflictError if it has fewer than `stop` layers, UsageError if it has two towers of
    them.
    """
    lists = layer_lists(checkpoint.entries)
    if not lists:
        raise ConflictError(f"{checkpoint.path} has no numbered layers to take a range of")
    before, count = next(iter(lists.items()))
    others = [name for name, number in lists.items() if number > 1 and name != before]
    if others:
        raise UsageError(
            f"{checkpoint.path} has more than one list of layers: "
            + ", ".join(shown(name) for name in (before, *others)),
            hint="ranges of layers are for models of a single tower",
        )
    if stop > count:
        raise ConflictError(
            f"{checkpoint.path} has {count} layers, and the layer_range goes up to {stop}"
        )
    return before


def files_of(checkpoint: Checkpoint) -> tuple[Checkpoint, ...]:
    """The checkpoints on disk that one is computed from, or it itself."""
    return checkpoint.leaves if isinstance(checkpoint, ComputedCheckpoint) else (checkpoint,)


def on_disk(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint on disk that has the same tensors by name and shape, if there is one."""
    return checkpoint.stands_for if isinstance(checkpoint, ComputedCheckpoint) else checkpoint
