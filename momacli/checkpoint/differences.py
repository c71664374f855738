"""The tensors of one checkpoint or of several tasks by one set of names, and how two differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from momacli.checkpoint.arrays import is_held
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.plan import TASK_HEADS
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.progress import Listener, Progress

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor and where it is."""

    checkpoint: Checkpoint
    key: str

    @property
    def entry(self) -> TensorEntry:
        """Its header entry."""
        return self.checkpoint.entries[self.key]


@dataclass(frozen=True)
class Difference:
    """In what one tensor differs between two checkpoints."""

    name: str
    kind: str  # "only in the first", "only in the second", "type or shape", "values"
    first: str | None  # type and shape
    second: str | None
    changed: int | None = None  # values that are not the same
    relative: float | None = None  # |second - first| / |first|


def named_tensors(opened: MultiTask) -> dict[str, Stored]:
    """Every tensor once, by the names that a file of all tasks has: of heads heads.TASK.NAME.

    What tasks do not share, such as encoders in a folder of experts, goes by TASK/NAME.
    """
    if len(opened.checkpoints) == 1:
        (checkpoint,) = opened.checkpoints
        return {key: Stored(checkpoint, key) for key in checkpoint.entries}
    heads = set(opened.recipe.heads) if opened.recipe else set()
    found: dict[str, Stored] = {}
    places: dict[str, tuple[int, int, int]] = {}
    for task, model in opened.tasks.items():
        for own, key in model.keys.items():
            here = model.checkpoint.place_of(key)
            name = f"{TASK_HEADS}{task}.{own}" if own in heads else own
            if not opened.shared_encoder or places.setdefault(name, here) != here:
                name = f"{task}/{own}"
            found.setdefault(name, Stored(model.checkpoint, key))
    return found


def find_differences(
    first: Mapping[str, Stored], second: Mapping[str, Stored], listener: Listener
) -> Iterator[Difference]:
    """Yield what is not the same bit by bit, in the order of the names."""
    names = list(dict.fromkeys([*first, *second]))
    for number, name in enumerate(names, start=1):
        a, b = first.get(name), second.get(name)
        x, y = None if a is None else a.entry, None if b is None else b.entry
        if a is None or b is None or x is None or y is None:
            kind = "only in the second" if x is None else "only in the first"
            yield Difference(
                name, kind, None if x is None else str(x), None if y is None else str(y)
            )
        elif (x.dtype, tuple(x.shape)) != (y.dtype, tuple(y.shape)):
            yield Difference(name, "type or shape", str(x), str(y))
        else:
            changed, relative = _change(a, b)
            if changed:
                yield Difference(name, "values", str(x), str(y), changed, relative)
        listener(Progress("comparing", number, len(names), "tensors"))


def _change(a: Stored, b: Stored) -> tuple[int, float | None]:
    """How many values have other bits, and |b - a| / |a|, where numbers are to be had."""
    one, other = a.checkpoint, b.checkpoint
    if not is_held(a.entry.dtype):
        return int((one.read(a.key) != other.read(b.key)).sum()), None
    changed, moved, length = 0, 0.0, 0.0
    for start, stop in iterate_blocks(a.entry.elements, _BLOCK):
        x, y = one.read_range(a.key, start, stop), other.read_range(b.key, start, stop)
        changed += _other_bits(x, y)
        if x.is_floating_point():
            moved += float((y.double() - x.double()).square().sum())
            length += float(x.double().square().sum())
    return changed, (moved / length) ** 0.5 if length else None


def _other_bits(x: "Tensor", y: "Tensor") -> int:
    import torch

    width = x.element_size()
    same = x.view(torch.uint8) == y.view(torch.uint8)
    return int((~same.reshape(-1, width).all(dim=1)).sum()) if same.numel() else 0
