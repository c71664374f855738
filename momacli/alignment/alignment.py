"""A fitted alignment as a file: the mask and the transforms, to be looked at and absorbed.

    mask.<tensor>      M, float32, in the tensor's shape; only where a mask was learned
    transform.<task>   A_t, float32 [d, d]
The metadata holds the recipe, the headroom h and the name of the layer that absorbs A_t.
"""

import json
from collections.abc import Mapping
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
    """An alignment on disk: A_t by task in memory, the masks read one at a time."""

    checkpoint: Checkpoint
    transforms: Mapping[str, Float[Tensor, "d d"]]
    headroom: float
    layer: str  # the linear layer that absorbs A_t
    recipe: Recipe

    @classmethod
    def open(cls, path: Path) -> "Alignment":
        """Open an alignment file. Raises CheckpointError if it is none."""
        checkpoint = Checkpoint.open(path)
        recipe = decode_recipe(checkpoint.metadata, path)
        try:
            content = json.loads(checkpoint.metadata[_ALIGNMENT_KEY])
            headroom, layer = float(content["headroom"]), str(content["layer"])
        except (KeyError, TypeError, ValueError) as error:
            checkpoint.close()
            raise CheckpointError(
                f"{path} is not an alignment", hint="moma align writes one beside its output"
            ) from error
        if recipe is None or recipe.merged is None:
            checkpoint.close()
            raise CheckpointError(f"{path} does not say which merged model it belongs to")
        transforms = {
            key.removeprefix(_TRANSFORM): checkpoint.read(key)
            for key in checkpoint.entries
            if key.startswith(_TRANSFORM)
        }
        return cls(checkpoint, transforms, headroom, layer, recipe)

    def has_mask(self, name: str) -> bool:
        """Whether a mask was learned for this tensor."""
        return _MASK + name in self.checkpoint.entries

    def read_mask(self, name: str, start: int, stop: int) -> Float[Tensor, " n"]:
        """Read elements start to stop of a tensor's mask, flattened."""
        return self.checkpoint.read_range(_MASK + name, start, stop)

    def close(self) -> None:
        """Close the file."""
        self.checkpoint.close()


def write_alignment(
    path: Path,
    transforms: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    headroom: float,
    layer: str,
    recipe: Recipe,
) -> None:
    """Write an alignment to `path` directly: stage it first."""
    tensors = {_TRANSFORM + task: matrix.float().cpu() for task, matrix in transforms.items()}
    tensors |= {_MASK + name: mask.float() for name, mask in masks.items()}
    specs = [TensorSpec(name, "F32", tuple(value.shape)) for name, value in tensors.items()]
    metadata = {
        "format": "pt",
        KEY: recipe.encode(),
        _ALIGNMENT_KEY: json.dumps({"headroom": headroom, "layer": layer}),
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
