"""Encoders of real shapes with random weights, experts and images, for processes of any package.

Nothing of moma is imported here, so that other packages can be measured on the same numbers where
moma is not installed.
"""

import torch
from torch import Tensor

SIZES = {  # hidden, layers, heads, patch, image
    "vit-b32": (768, 12, 12, 32, 224),
    "vit-b16": (768, 12, 12, 16, 224),
    "vit-l14": (1024, 24, 16, 14, 224),
    "small": (192, 6, 3, 4, 32),
}
CLASSES = 10


class Network:
    """A ViT in the form that alignments ask for."""

    def __init__(self, size: str, device: str = "cpu"):
        import transformers

        hidden, layers, heads, patch, image = SIZES[size]
        config = transformers.ViTConfig(
            hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
            num_attention_heads=heads, patch_size=patch, image_size=image,
        )  # fmt: skip
        self.module = transformers.ViTModel(config, add_pooling_layer=False).eval().to(device)
        self.device = torch.device(device)
        self.parameters = dict(self.module.named_parameters())
        self.buffers: dict[str, Tensor] = {}
        self.hidden, self.image = hidden, image
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(False).copy_(self.base(name))

    @property
    def nbytes(self) -> int:
        return sum(4 * parameter.numel() for parameter in self.parameters.values())

    def base(self, name: str) -> Tensor:
        """A tensor of the base, drawn anew each time."""
        shape = self.parameters[name].shape
        draw = torch.Generator().manual_seed(self._number(name))
        start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return start + 0.02 * torch.randn(shape, generator=draw)

    def expert(self, t: int, name: str) -> Tensor:
        """A tensor of an expert, a small random step away from the base."""
        shape = self.parameters[name].shape
        draw = torch.Generator().manual_seed(1000 * (1 + t) + self._number(name))
        return self.base(name) + 0.01 * torch.randn(shape, generator=draw)

    def _number(self, name: str) -> int:
        return list(self.parameters).index(name)

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.module(**batch).last_hidden_state[:, 0]
        return output


def images_and_head(network: Network, task: int, count: int) -> tuple[Tensor, Tensor]:
    """Images of one task that need no decoding, and its head's weights without a bias."""
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(count, 3, network.image, network.image, generator=generator)
    return x, torch.randn(CLASSES, network.hidden, generator=generator)
