"""Random masks that do not depend on how a tensor is split, or on the device it lives on."""

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor


def random_mask(
    tau: Float[Tensor, "*shape"], keep: float | Tensor, generator: Generator
) -> Bool[Tensor, "*shape"]:
    """Draw a mask that is true with probability `keep`, a number or one per entry.

    Uniform draws are consumed one per entry in order, so consecutive blocks of a tensor get
    the mask that the whole would; `torch.bernoulli` does not promise that.
    """
    draws = torch.rand(tau.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return draws.to(tau.device) < keep
