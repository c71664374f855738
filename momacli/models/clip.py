"""CLIP and SigLIP image encoders of `transformers` with a zero-shot head.

The features are what is compared with texts: the projected ones of CLIP, the pooled ones of
SigLIP, not normalised. The head takes z/|z|, so W (A z / |A z|) = (W A) z/|z| for orthogonal A.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from momacli.checkpoint.head_files import HEAD
from momacli.checkpoint.header import TensorEntry
from momacli.models.factory import build_tower
from momacli.models.interface import Batch
from momacli.models.separate_head import SeparateHead, unit_norm
from momacli.shapes import Float

_TEXT = ("text_model.", "text_projection.", "logit_")
"""Parts of a full model that images do not pass through."""


class VisionTower(SeparateHead):
    """An image encoder and a cosine head; tensors go by their checkpoint names."""

    head_name = HEAD.removesuffix(".")
    misfit_hint = (
        "a head made from CLIP's texts needs the projection of that CLIP, which a "
        "CLIPVisionModel lacks: merge with the full CLIP as the base"
    )

    def __init__(
        self,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        heads: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        """Build the network of a config. heads: names of the head's tensors."""
        if heads is None:
            heads = [key for key in entries if key.startswith(HEAD)]
        super().__init__(self.build(config, entries), entries, heads, device)
        self._offer_parameters(lambda key: self.sees_images(self._names[key]))

    @staticmethod
    def build(config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> nn.Module:
        """Build the network, with random weights."""
        del entries  # transformers tells by the class what a file has
        return build_tower(config)

    @staticmethod
    def sees_images(name: str) -> bool:
        """Whether images pass through a tensor, by its name in the network."""
        return not name.startswith(_TEXT)

    def before(self) -> Callable[[Tensor], Tensor]:
        """Features are normalised before the head."""
        return unit_norm

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the image embeddings as they are before normalisation."""
        embed: Any = getattr(self.module, "get_image_features", self.module)
        output = embed(**batch)
        for name in ("image_embeds", "pooler_output"):
            if isinstance(found := getattr(output, name, None), Tensor):
                return found
        assert isinstance(output, Tensor)
        return output
