"""ProbSurgery (Wei et al. 2025, ICML): an adapter a task that is fitted under noise.

    h = ReLU(E z_m),   mu = M h,   log sigma^2 = V h
    minimise mean |z_m - zeta - z_t| + weight KL(N(mu, sigma^2) || N(0, 1)),
        zeta = mu + epsilon sigma,   epsilon ~ N(0, 1)

At test zeta = mu, so that what is kept is an adapter like that of Representation Surgery, with
Down = E and Up = M; V is needed for the fit alone. The published code evaluates on test data
after every hundred steps and reports the best; here the last step counts.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.features.adapter import Adapter, new_down
from momacli.features.descent import descend


def probsurgery(
    merged: Float[Tensor, "N d"],
    finetuned: Float[Tensor, "N d"],
    *,
    rank: int = 128,
    weight: float = 1e-4,
    steps: int = 5000,
    batch_size: int = 16,
    rate: float = 1e-3,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Fit one task's adapter; with no step it changes nothing, for M and V begin at zero.

    rank: rows of E; 128 is the published code's. 2 r d parameters are added for each task.
    weight: of the divergence, which is summed over d and averaged over samples; 1e-4 is the
        published code's.
    steps: of Adam; 5000 are the published 50 rounds of 100 batches.
    batch_size: samples of a step; 16 is the paper's.
    rate: Adam's learning rate; 1e-3 is the paper's.
    """
    down = new_down(rank, merged, generator).requires_grad_(True)
    mean = merged.new_zeros(merged.shape[1], rank).requires_grad_(True)
    spread = merged.new_zeros(merged.shape[1], rank).requires_grad_(True)

    def loss(indices: Tensor) -> Tensor:
        z_m, z_t = merged[indices], finetuned[indices]
        hidden = torch.relu(z_m @ down.mT)
        mu, log_variance = hidden @ mean.mT, hidden @ spread.mT
        epsilon = torch.randn(z_m.shape, generator=generator).to(z_m.device)
        zeta = mu + epsilon * (log_variance / 2).exp()
        distance = torch.nn.functional.l1_loss(z_m - zeta, z_t)
        return distance + weight * normal_divergence(mu, log_variance)

    descend(
        [down, mean, spread],
        loss,
        count=len(merged),
        steps=steps,
        batch_size=batch_size,
        rate=rate,
        generator=generator,
        on_step=on_step,
    )
    return Adapter(down.detach(), mean.detach())


def normal_divergence(
    mu: Float[Tensor, "n d"], log_variance: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return KL(N(mu, sigma^2) || N(0, 1)), summed over d, the mean of the samples."""
    terms = mu.square() + log_variance.exp() - log_variance - 1
    return terms.sum(dim=1).mean() / 2
