"""What the rest of moma knows of a model: an encoder that makes features, a linear head.

A head here is the first linear layer after the features: the one that absorbs A_t.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Batch = Mapping[str, Tensor]
"""What a model takes: pixel_values, or input_ids with attention_mask; first dimension N."""


@dataclass(frozen=True)
class Head:
    """A task's classifier: logits = z W^T + b."""

    weight: Float[Tensor, "C d"]
    bias: Float[Tensor, " C"] | None

    def __call__(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch C"]:
        """Return the logits of raw (not normalised) features."""
        return torch.nn.functional.linear(features, self.weight, self.bias)


@runtime_checkable
class Encoder(Protocol):
    """A built network whose weights are replaced at will, by the names of the checkpoint."""

    parameters: Mapping[str, torch.nn.Parameter]  # by checkpoint name
    buffers: Mapping[str, Tensor]

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the raw features of a batch; differentiable in `parameters`."""
        ...
