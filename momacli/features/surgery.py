"""Representation Surgery (Yang et al. 2024, arXiv:2402.02705): a low-rank adapter a task.

    minimise mean |z' - z_t|   over Down [r, d] and Up [d, r],   z' = z_m - Up ReLU(Down z_m)

on raw, not normalised, features. The merged encoder and the head stay as they are. Each task
has an adapter of its own, fitted by itself; the published code does the same through the whole
encoder, with the same result at many times the cost.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from momacli.features.adapter import Adapter, new_down
from momacli.features.descent import Pace, Slopes, descend
from momacli.shapes import Float


def surgery(
    merged: Float[Tensor, "N d"],
    finetuned: Float[Tensor, "N d"],
    *,
    rank: int = 16,
    steps: int = 1000,
    batch_size: int = 16,
    rate: float = 1e-3,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Fit one task's adapter; with no step it changes nothing, for Up begins at zero.

    rank: r; 16 is the published code's. 2 r d parameters are added for each task.
    steps: of Adam; 1000 are the published 500 rounds of two batches.
    batch_size: samples of a step; 16 is the paper's.
    rate: Adam's learning rate; 1e-3 is the paper's.
    """
    down = new_down(rank, merged, generator).mT.contiguous()  # [d, r], which multiplies faster
    up = merged.new_zeros(merged.shape[1], rank)
    wanted = merged - finetuned

    def differentiate(indices: Tensor) -> Slopes:
        z = merged[indices]
        hidden = torch.relu(z @ down)
        rest = torch.addmm(wanted[indices], hidden, up.mT, alpha=-1)  # z' - z_t
        by_taken = rest.sign() / -rest.numel()  # what is taken from z
        by_hidden = (by_taken @ up).masked_fill_(hidden <= 0, 0)
        return lambda: rest.abs().mean(), (z.mT @ by_hidden, by_taken.mT @ hidden)

    pace = Pace(steps, batch_size, rate)
    descend([down, up], differentiate, len(merged), pace, generator, on_step)
    return Adapter(down.mT.contiguous(), up)
