"""What the rest of moma knows of a model: an encoder that makes features, a head on top.

A head begins with a linear layer, the one that absorbs A_t; in most models that is all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from momacli.shapes import Float

Batch = Mapping[str, Tensor]
"""What a model takes: pixel_values, or input_ids with attention_mask; first dimension N."""


@dataclass(frozen=True)
class Padding:
    """How batches of token ids are brought to a common length; others are as long already."""

    values: Mapping[str, int] = field(default_factory=dict)  # by input name; 0 for the others
    left: bool = False

    def together(self, batches: Sequence[Batch]) -> Batch:
        """Return the samples of all batches, in order, as one batch."""
        result = {}
        for key in batches[0]:
            parts = [batch[key] for batch in batches]
            if parts[0].ndim == 2:
                length = max(part.shape[1] for part in parts)
                parts = [self._filled(key, part, length - part.shape[1]) for part in parts]
            result[key] = torch.cat(parts)
        return result

    def _filled(self, key: str, tokens: Tensor, missing: int) -> Tensor:
        sides = (missing, 0) if self.left else (0, missing)
        return torch.nn.functional.pad(tokens, sides, value=self.values.get(key, 0))


@dataclass(frozen=True)
class Head:
    """A task's classifier: logits = rest(before(z) W^T + b), where most are linear and no more.

    `before` is something that an orthogonal A_t may be exchanged with, such as taking z/|z|.
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"] | None
    rest: Callable[[Tensor], Tensor] | None = None  # [..., k] -> [..., C]
    before: Callable[[Tensor], Tensor] | None = None  # [..., d] -> [..., d]

    def __call__(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch C"]:
        """Return the logits of raw (not normalised) features."""
        if self.before is not None:
            features = self.before(features)
        hidden = torch.nn.functional.linear(features, self.weight, self.bias)
        return hidden if self.rest is None else self.rest(hidden)


@runtime_checkable
class Encoder(Protocol):
    """A built network whose weights are replaced at will, by the names of the checkpoint."""

    parameters: Mapping[str, torch.nn.Parameter]  # by checkpoint name
    buffers: Mapping[str, Tensor]

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the raw features of a batch; differentiable in `parameters`."""
        ...
