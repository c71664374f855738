"""What is put behind an encoder to mend its features: two small matrices a task."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """z - Up ReLU(Down z), of rank r (Yang et al. 2024, Representation Surgery, Eq. 3)."""

    down: Float[Tensor, "r d"]
    up: Float[Tensor, "d r"]

    def __call__(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return the mended features."""
        return features - torch.relu(features @ self.down.mT) @ self.up.mT

    def to(self, device: torch.device | str) -> "Adapter":
        """The same on a device."""
        return Adapter(self.down.to(device), self.up.to(device))

    @property
    def parameters(self) -> int:
        """How many numbers it adds to a model."""
        return self.down.numel() + self.up.numel()


def new_down(rank: int, like: Float[Tensor, "N d"], generator: torch.Generator) -> Tensor:
    """Draw Down [r, d] as PyTorch draws the weight of a linear layer: uniform, ±1/sqrt(d)."""
    width = like.shape[1]
    drawn = torch.rand(rank, width, generator=generator)
    bound: float = width**-0.5
    return ((2 * drawn - 1) * bound).to(like.device)
