"""What mends the features of an encoder: two small matrices a task, or such a pair a block."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.shapes import Float


@dataclass(frozen=True)
class Adapter:
    """z - Up ReLU(Down z), of rank r (Yang et al. 2024, Representation Surgery, Eq. 3).

    blocks: of a deep one, the adapters behind each block of the encoder, in order. They mend
        tokens on their way; a call mends features at the end of it.
    """

    down: Float[Tensor, "r d"]
    up: Float[Tensor, "d r"]
    blocks: tuple["Adapter", ...] = ()

    def __call__(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return the mended features."""
        return features - torch.relu(features @ self.down.mT) @ self.up.mT

    def to(self, device: torch.device | str) -> "Adapter":
        """The same on a device."""
        blocks = tuple(one.to(device) for one in self.blocks)
        return Adapter(self.down.to(device), self.up.to(device), blocks)

    @property
    def parameters(self) -> int:
        """How many numbers it adds to a model."""
        own = self.down.numel() + self.up.numel()
        return own + sum(one.parameters for one in self.blocks)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its matrices by name: down and up, and down-0, up-0, … of the blocks."""
        found = {"down": self.down, "up": self.up}
        for number, one in enumerate(self.blocks):
            found |= {f"down-{number}": one.down, f"up-{number}": one.up}
        return found


def adapter_of(parts: Mapping[str, Tensor]) -> Adapter | None:
    """The adapter of these parts; None where one is missing, too many or of another shape."""
    count = len(parts) // 2 - 1
    pairs = [("down", "up"), *((f"down-{n}", f"up-{n}") for n in range(count))]
    if count < 0 or set(parts) != {name for pair in pairs for name in pair}:
        return None
    if any(value.ndim != 2 or not value.is_floating_point() for value in parts.values()):
        return None
    final, *blocks = [(parts[down], parts[up]) for down, up in pairs]
    if any(down.shape != up.mT.shape for down, up in (final, *blocks)):
        return None
    return Adapter(*final, tuple(Adapter(down, up) for down, up in blocks))


def new_down(rank: int, like: Float[Tensor, "N d"], generator: torch.Generator) -> Tensor:
    """Draw Down [r, d] as PyTorch draws the weight of a linear layer: uniform, ±1/sqrt(d)."""
    width = like.shape[1]
    drawn = torch.rand(rank, width, generator=generator)
    bound: float = width**-0.5
    return ((2 * drawn - 1) * bound).to(like.device)
