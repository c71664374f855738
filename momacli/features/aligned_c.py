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
from torch import Tensor

from momacli.features.descent import Pace, Slopes, descend
from momacli.models.interface import Head
from momacli.shapes import Float


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
    rows = (head.weight / scale).mT.contiguous()  # [d, k], which multiplies faster
    bias = torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias.clone()
    with torch.no_grad():
        answers = torch.log_softmax(head(finetuned), dim=1)
        features = merged if head.before is None else head.before(merged)

    def differentiate(indices: Tensor) -> Slopes:
        z = features[indices]
        hidden = torch.addmm(bias, z, rows, alpha=scale)
        loss, by_hidden = _divergence(hidden, head.rest, answers[indices])
        slopes = [(z.mT @ by_hidden).mul_(scale), by_hidden.sum(dim=0)]
        return loss, slopes[: len(learned)]

    learned = [rows] if head.bias is None else [rows, bias]
    pace = Pace(steps, batch_size, rate)
    descend(learned, differentiate, len(merged), pace, generator, on_step)
    weight = rows.mT.mul(scale).contiguous()
    return replace(head, weight=weight, bias=None if head.bias is None else bias)


def _divergence(
    hidden: Float[Tensor, "n k"],
    rest: Callable[[Tensor], Tensor] | None,
    answers: Float[Tensor, "n C"],
) -> tuple[Callable[[], Tensor], Float[Tensor, "n k"]]:
    """Return the mean KL(exp(answers) || softmax(rest(hidden))), and its gradient by hidden."""
    if rest is not None:
        hidden.requires_grad_(True)
    logits = hidden if rest is None else rest(hidden)
    found, wanted = torch.log_softmax(logits.detach(), dim=1), answers.exp()

    def loss() -> Tensor:
        return (wanted * (answers - found)).sum() / len(answers)

    by_logits = (found.exp() - wanted) / len(answers)
    if rest is None:
        return loss, by_logits
    (by_hidden,) = torch.autograd.grad(logits, hidden, by_logits)
    return loss, by_hidden
