"""A fitted alignment: what is folded into a merged model, in memory or in a file.

    mask.<tensor>      M, float32, in the tensor's shape; only where a mask was learned
    transform.<task>   A_t, float32 [d, d]
The file's metadata holds the recipe, the headroom h and the layer that absorbs A_t.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from momacli.checkpoint.provenance import KEY, Recipe, decode_recipe
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import CheckpointError

_MASK, _TRANSFORM = "mask.", "transform."
_ALIGNMENT_KEY = "alignment"


@dataclass(frozen=True)
class Alignment:
    """What `absorb` folds: A_t by task, and M by tensor, read a part at a time."""

    transforms: Mapping[str, Float[Tensor, "d d"]]
    masked: frozenset[str]  # tensors with a mask
    read_mask: Callable[[str, int, int], Float[Tensor, " n"]]  # elements start to stop, flat
    headroom: float
    layer: str  # the linear layer that absorbs A_t
    recipe: Recipe
    place: Path  # where it is or will be; the recipe's paths are relative to its folder
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
) -> Alignment:
    """Return an alignment whose masks are in memory."""

    def read_mask(name: str, start: int, stop: int) -> Tensor:
        return masks[name].float().reshape(-1)[start:stop]

    matrices = {task: matrix.float().cpu() for task, matrix in transforms.items()}
    return Alignment(matrices, frozenset(masks), read_mask, headroom, layer, recipe, place)


@contextmanager
def open_alignment(path: Path) -> Iterator[Alignment]:
    """Open an alignment file. Raises CheckpointError if it is none."""
    with Checkpoint.open(path) as checkpoint:
        recipe = decode_recipe(checkpoint.metadata, path)
        try:
            content = json.loads(checkpoint.metadata[_ALIGNMENT_KEY])
            headroom, layer = float(content["headroom"]), str(content["layer"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not an alignment", hint="moma align writes one with its output"
            ) from error
        if recipe is None or recipe.merged is None:
            raise CheckpointError(f"{path} does not say which merged model it belongs to")
        names = list(checkpoint.entries)
        transforms = {
            name.removeprefix(_TRANSFORM): checkpoint.read(name)
            for name in names
            if name.startswith(_TRANSFORM)
        }
        yield Alignment(
            transforms,
            frozenset(name.removeprefix(_MASK) for name in names if name.startswith(_MASK)),
            lambda name, start, stop: checkpoint.read_range(_MASK + name, start, stop),
            headroom,
            layer,
            recipe,
            path,
            checkpoint,
        )


def write_alignment(path: Path, alignment: Alignment, masks: Mapping[str, Tensor]) -> None:
    """Write an alignment and its masks to `path` directly: stage it first."""
    tensors = {_TRANSFORM + task: matrix for task, matrix in alignment.transforms.items()}
    tensors |= {_MASK + name: mask.float() for name, mask in masks.items()}
    specs = [TensorSpec(name, "F32", tuple(value.shape)) for name, value in tensors.items()]
    content = {"headroom": alignment.headroom, "layer": alignment.layer}
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
