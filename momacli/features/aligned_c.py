"""Aligned-C (MOMA, appendix D): the heads alone are trained to answer as before the merge.

    minimise mean KL(softmax(W_t z_t + b) || softmax(W' z_m + b'))   over W', b',   from W_t, b

without labels: the fine-tuned model answers. The order of the divergence is that of the
published code; Eq. 12 names it the other way round, as a function of the merged logits first.
Nothing is added: W' has the shape of W_t. Of a head of several layers, the first is trained,
the one that takes the features.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.features.descent import descend
from momacli.models.interface import Head


def aligned_c(
    merged: Float[Tensor, "N d"],
    finetuned: Float[Tensor, "N d"],
    head: Head,
    *,
    steps: int = 1000,
    batch_size: int = 16,
    rate: float = 1e-3,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> Head:
    """Train one task's head; with no step it is returned as it was.

    steps: of Adam; the paper gives none, 1000 are those of Representation Surgery.
    batch_size: samples of a step; 16 is the paper's for vision, 24 for text.
    rate: Adam's learning rate; 1e-3 is the paper's for vision, 5e-4 for text. Where features are
        normalised first, as by CLIP, the scale of the logits is taken out of W' while it is
        trained, so that its rows are of length one.
    """
    scale = float(head.weight.norm(dim=1).mean()) if head.before is not None else 1.0
    rows = (head.weight / scale).requires_grad_(True)
    bias = None if head.bias is None else head.bias.clone().requires_grad_(True)
    with torch.no_grad():
        answers = torch.log_softmax(head(finetuned), dim=1)

    def loss(indices: Tensor) -> Tensor:
        logits = replace(head, weight=scale * rows, bias=bias)(merged[indices])
        found = torch.log_softmax(logits, dim=1)
        divergence: Tensor = torch.nn.functional.kl_div(
            found, answers[indices], reduction="batchmean", log_target=True
        )
        return divergence

    descend(
        [rows] if bias is None else [rows, bias],
        loss,
        count=len(merged),
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        generator=generator,
        on_step=on_step,
    )
    return replace(
        head,
        weight=(scale * rows).detach(),
        bias=None if bias is None else bias.detach(),
    )
