"""The slices of a mergekit configuration, and where each tensor of the output lies in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ConflictError
from momacli.recipes.layers import is_before_layers, joined, layer_lists, split_layer
from momacli.recipes.mergekit_values import Settings


@dataclass(frozen=True)
class Source:
    """A range of layers of a model, and what is said of it alone."""

    model: Path
    start: int
    stop: int
    settings: Settings


@dataclass(frozen=True)
class Slice:
    """Some layers of the output: what they are merged from."""

    experts: tuple[Source, ...]
    base: Source | None  # where it is among the sources
    settings: Settings


@dataclass(frozen=True)
class Place:
    """A tensor of the output: its slice, the layer in there, how far up the slice it is."""

    slice: Slice
    offset: int | None  # None outside the layers
    t: float


class Places:
    """Finds the place of each tensor of the output among the slices."""

    def __init__(self, slices: Sequence[Slice], output: Checkpoint):
        self._slices = slices
        self._lists = layer_lists(output.entries)

    def of(self, key: str) -> Place:
        """Of what is outside the layers, gradients are taken at their start, as mergekit does."""
        split = split_layer(key)
        if split is None or (self._lists[split[0]] < 2 and split[0] != next(iter(self._lists))):
            return Place(self._slices[0 if is_before_layers(key) else -1], None, 0.0)
        before, number, _ = split
        if len(self._slices) == 1:  # also of models with several towers
            return Place(self._slices[0], number, _t(number, self._lists[before]))
        for item in self._slices:
            length = item.experts[0].stop - item.experts[0].start
            if number < length:
                return Place(item, number, _t(number, length))
            number -= length
        raise ConflictError(f"tensor {shown(key)} is in no slice")


def _t(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 1.0


def own_name(key: str, source: Source, place: Place) -> str:
    """The name that a tensor of the output has in one of the models."""
    split = split_layer(key)
    if split is None or place.offset is None:
        return key
    return joined(split[0], source.start + place.offset, split[2])
