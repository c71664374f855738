"""SurgeryV2 (Yang et al. 2024, arXiv:2410.14389): a low-rank adapter behind every block.

    x_l <- x_l - Up_l ReLU(Down_l x_l)   on every token behind block l of the merged encoder,
    z'  =  z_m - Up ReLU(Down z_m)       on its features,
    minimise  sum over l of mean |m(x_l) - m(x_l of the fine-tuned encoder)| + mean |z' - z_t|

where m is the mean of a sample's tokens; the adapters of early blocks change what later ones
see, so a step is one of the whole encoder. Its weights and the head stay as they are. Each
task has adapters of its own, fitted by themselves. The paper's are of images; where a text is
padded, padding is no token.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from momacli.features.adapter import Adapter, new_down
from momacli.features.descent import Pace, Slopes, descend
from momacli.shapes import Float

Encode = Callable[[Tensor, Sequence[Adapter]], tuple[Sequence[Tensor], Tensor]]
"""Indices [n] of samples and an adapter a block -> the mean token [n, d_l] behind each block, and
the features [n, d], which the adapter behind the encoder has yet to mend."""


def surgery_v2(
    encode: Encode,
    wanted: Sequence[Float[Tensor, "N _"]],
    *,
    rank: int = 16,
    steps: int = 1000,
    batch_size: int = 16,
    rate: float = 1e-3,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Fit one task's adapters; with no step they change nothing, for each Up begins at zero.

    encode: the merged encoder, on one task's samples.
    wanted: what the fine-tuned encoder makes of all samples: mean tokens behind each block, then
        features.
    rank: r; 16 is the published code's for ViT-B, which has 4 for ViT-L. 2 r d parameters are
        added for each task behind every block, and behind the encoder.
    steps: of Adam; 1000 are the published 500 rounds of two batches.
    batch_size: samples of a step; 16 is the paper's.
    rate: Adam's learning rate; 1e-3 is the paper's.
    """
    downs = [new_down(rank, each, generator) for each in wanted]
    ups = [each.new_zeros(each.shape[1], rank) for each in wanted]
    parameters = [value for pair in zip(downs, ups, strict=True) for value in pair]

    def differentiate(indices: Tensor) -> Slopes:
        leaves = [value.detach().requires_grad_(True) for value in parameters]
        *inner, last = map(Adapter, leaves[::2], leaves[1::2])
        means, features = encode(indices, inner)
        found = [*means, last(features)]
        distances = [
            torch.nn.functional.l1_loss(one, each[indices])
            for one, each in zip(found, wanted, strict=True)
        ]
        loss = torch.stack(distances).sum()
        return loss.detach, torch.autograd.grad(loss, leaves)

    pace = Pace(steps, batch_size, rate)
    descend(parameters, differentiate, len(wanted[-1]), pace, generator, on_step)
    *inner, last = map(Adapter, downs, ups)
    return Adapter(last.down, last.up, tuple(inner))
