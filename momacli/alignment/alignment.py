"""A fitted alignment: what is folded into a merged model or put behind it.

In memory, or in a file of float32 tensors:

    mask.<tensor>                M, in the tensor's shape; only where a mask was learned
    transform.<task>             A_t [d, d]
    head.<part>.<task>           weight [k, d] and bias [k] that take the place of the head's
    adapter.<part>.<task>        down [r, d] and up [d, r]: what is not folded but added;
                                 of a deep one also down-0, up-0, … behind each block
The file's metadata holds the recipe, the headroom h, the layer that absorbs A_t and what the
alignment achieved.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from momacli.alignment.beside import ALIGNMENT
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.provenance import KEY, Recipe, decode_recipe
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import CheckpointError
from momacli.features.adapter import Adapter, adapter_of
from momacli.shapes import Float

_MASK, _TRANSFORM, _HEAD, _ADAPTER = "mask.", "transform.", "head.", "adapter."
_ALIGNMENT_KEY = "alignment"
_WHERE_FROM = "moma align writes one with its output"


@dataclass(frozen=True)
class Alignment:
    """A_t and heads by task, and M by tensor, read a part at a time; or adapters by task."""

    transforms: Mapping[str, Float[Tensor, "d d"]]
    masked: frozenset[str]  # tensors with a mask
    read_mask: Callable[[str, int, int], Float[Tensor, " n"]]  # elements start to stop, flat
    headroom: float
    layer: str  # the linear layer that absorbs A_t
    recipe: Recipe
    place: Path  # where it is or will be; the recipe's paths are relative to its folder
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # weight, bias
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    measures: Mapping[str, object] = field(default_factory=dict)  # of what it achieved, for JSON
    checkpoint: Checkpoint | None = None  # its file, open, where there is one already

    def sha256(self) -> str:
        """The SHA-256 of its file, which is there."""
        assert self.checkpoint is not None
        (digest,) = self.checkpoint.sha256().values()
        return digest


def alignment_of(
    transforms: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    headroom: float,
    layer: str,
    recipe: Recipe,
    place: Path,
    heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    adapters: Mapping[str, Adapter] | None = None,
    measures: Mapping[str, object] | None = None,
) -> Alignment:
    """Return an alignment whose masks are in memory."""

    def read_mask(name: str, start: int, stop: int) -> Tensor:
        return masks[name].float().reshape(-1)[start:stop]

    matrices = {task: matrix.float().cpu() for task, matrix in transforms.items()}
    return Alignment(
        matrices,
        frozenset(masks),
        read_mask,
        headroom,
        layer,
        recipe,
        place,
        {
            task: {part: value.float().cpu() for part, value in parts.items()}
            for task, parts in (heads or {}).items()
        },
        {task: adapter.to("cpu") for task, adapter in (adapters or {}).items()},
        measures or {},
    )


@contextmanager
def open_alignment(path: Path) -> Iterator[Alignment]:
    """Open an alignment file. Raises CheckpointError if it is none."""
    if path.is_dir():
        there = (path / ALIGNMENT).is_file()
        raise CheckpointError(
            f"{shown_path(path)} is a folder, expected an alignment",
            hint=f"give {shown_path(path / ALIGNMENT)}" if there else _WHERE_FROM,
        )
    with Checkpoint.open(path) as checkpoint:
        recipe = decode_recipe(checkpoint.metadata, path)
        try:
            content = json.loads(checkpoint.metadata[_ALIGNMENT_KEY])
            headroom, layer = float(content["headroom"]), str(content["layer"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{shown_path(path)} is not an alignment", hint=_WHERE_FROM
            ) from error
        if recipe is None or recipe.merged is None:
            raise CheckpointError(f"{path} does not say which merged model it belongs to")
        named = {
            kind: [name for name in checkpoint.entries if name.startswith(kind)]
            for kind in (_MASK, _TRANSFORM, _HEAD, _ADAPTER)
        }
        yield Alignment(
            {name.removeprefix(_TRANSFORM): checkpoint.read(name) for name in named[_TRANSFORM]},
            frozenset(name.removeprefix(_MASK) for name in named[_MASK]),
            lambda name, start, stop: checkpoint.read_range(_MASK + name, start, stop),
            headroom,
            layer,
            recipe,
            path,
            _by_task(checkpoint, named[_HEAD]),
            _read_adapters(checkpoint, named[_ADAPTER]),
            content.get("measures", {}),
            checkpoint,
        )


def _by_task(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Read tensors called KIND.PART.TASK; returns them by task and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in names:
        _, part, task = [*name.split(".", 2), ""][:3]
        found.setdefault(task, {})[part] = checkpoint.read(name)
    return found


def _read_adapters(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Adapter]:
    """Read each task's adapter. Raises CheckpointError where a part is missing or does not fit."""
    found = {task: adapter_of(parts) for task, parts in _by_task(checkpoint, names).items()}
    broken = [shown(task) for task, adapter in found.items() if adapter is None]
    if broken:
        raise CheckpointError(
            f"{checkpoint.path}: the adapters of these tasks are incomplete",
            details=broken,
            hint="align again, or bring the whole file back",
        )
    return {task: adapter for task, adapter in found.items() if adapter is not None}


def write_alignment(path: Path, alignment: Alignment, masks: Mapping[str, Tensor]) -> None:
    """Write an alignment and its masks to `path` directly: stage it first."""
    tensors = {_TRANSFORM + task: matrix for task, matrix in alignment.transforms.items()}
    tensors |= {_MASK + name: mask.float() for name, mask in masks.items()}
    for task, parts in alignment.heads.items():
        tensors |= {f"{_HEAD}{part}.{task}": value for part, value in parts.items()}
    for task, adapter in alignment.adapters.items():
        tensors |= {f"{_ADAPTER}{part}.{task}": value for part, value in adapter.parts.items()}
    specs = [TensorSpec(name, "F32", tuple(value.shape)) for name, value in tensors.items()]
    content: dict[str, object] = {"headroom": alignment.headroom, "layer": alignment.layer}
    if alignment.measures:
        content["measures"] = dict(alignment.measures)
    metadata = {
        "format": "pt",
        KEY: alignment.recipe.encode(),
        _ALIGNMENT_KEY: json.dumps(content),
    }
    with CheckpointWriter(path, specs, metadata) as writer:
        for name, value in tensors.items():
            writer.append(name, value)


def folded_head(
    weight: Float[Tensor, "C d"], transform: Float[Tensor, "d d"]
) -> Float[Tensor, "C d"]:
    """Return W A: <A z, w> = <z, A^T w>, so each class's row w becomes A^T w (MOMA Eq. 9).

    Computed in float64, in the type of the weight. The bias stays as it is.
    """
    return (weight.double() @ transform.double()).to(weight.dtype)
