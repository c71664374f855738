"""CLIP and SigLIP image encoders of `transformers` with a zero-shot head.

The features are what is compared with texts: the projected ones of CLIP, the pooled ones of
SigLIP, not normalised. The head takes z/|z|, so W (A z / |A z|) = (W A) z/|z| for orthogonal A.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.checkpoint.head_files import HEAD
from momacli.checkpoint.header import TensorEntry
from momacli.errors import ModelError
from momacli.models.classification import Network, read_head
from momacli.models.factory import build_tower
from momacli.models.interface import Batch, Head

_TEXT = ("text_model.", "text_projection.", "logit_")
"""Parts of a full model that images do not pass through."""


class VisionTower(Network):
    """An image encoder and a cosine head; tensors go by their checkpoint names."""

    head_name = HEAD.removesuffix(".")

    def __init__(
        self,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        heads: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        """Build the network of a config. heads: names of the head's tensors."""
        super().__init__(build_tower(config), entries, device)
        self._heads = frozenset(
            [key for key in entries if key.startswith(HEAD)] if heads is None else heads
        )
        self._head: Head | None = None
        self._offer_parameters(lambda key: not key.startswith(_TEXT))

    def load(self, read: Callable[[str], Tensor], keys: Iterable[str], *, source: str) -> None:
        """Replace all weights, and keep the head for `logits`."""
        keys = list(keys)
        super().load(read, [key for key in keys if key not in self._heads], source=source)
        self._head = self.head(read, keys)

    def find_head(self, batch: Batch) -> None:
        """Check that the head fits the features. Raises ModelError."""
        with torch.no_grad():
            self.logits(batch)

    def head(self, read: Callable[[str], Tensor], keys: Iterable[str]) -> Head:
        """Read a task's head, in float32."""
        plain = read_head(lambda key: read(key).to(self.device), keys, self.head_name)
        return Head(plain.weight, plain.bias, before=unit_norm)

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the image embeddings as they are before normalisation."""
        embed: Any = getattr(self.module, "get_image_features", self.module)
        output = embed(**batch)
        for name in ("image_embeds", "pooler_output"):
            if isinstance(found := getattr(output, name, None), Tensor):
                return found
        assert isinstance(output, Tensor)
        return output

    def logits(self, batch: Batch) -> Float[Tensor, "N C"]:
        """Return the head's logits."""
        if self._head is None:
            raise ModelError("there is no head", hint="make one with moma head")
        features = self.features(batch).float()
        expected, found = self._head.weight.shape[1], features.shape[1]
        if expected != found:
            raise ModelError(
                f"the head takes features of {expected} numbers, the encoder gives {found}",
                hint="a head made from CLIP's texts needs the projection of that CLIP, which a "
                "CLIPVisionModel lacks: merge with the full CLIP as the base",
            )
        return self._head(features)


def unit_norm(features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Return z/|z|."""
    return torch.nn.functional.normalize(features, dim=-1)
