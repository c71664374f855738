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
from torch import Tensor

from momacli.features.adapter import Adapter, new_down
from momacli.features.descent import Pace, Slopes, descend
from momacli.shapes import Float


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
    down = new_down(rank, merged, generator).mT.contiguous()  # [d, r], which multiplies faster
    mean = merged.new_zeros(merged.shape[1], rank)
    spread = torch.zeros_like(mean)
    wanted = merged - finetuned

    def differentiate(indices: Tensor) -> Slopes:
        z = merged[indices]
        hidden = torch.relu(z @ down)
        mu, log_variance = hidden @ mean.mT, hidden @ spread.mT
        sigma = (log_variance / 2).exp_()
        noise = torch.randn(z.shape, generator=generator).to(z.device).mul_(sigma)
        rest = (wanted[indices] - mu).sub_(noise)  # z_m - zeta - z_t
        by_zeta, share = rest.sign().div_(-rest.numel()), weight / len(z)
        by_mu = torch.add(by_zeta, mu, alpha=share)
        by_log_variance = noise.mul_(by_zeta).add_(sigma.square_().sub_(1), alpha=share).div_(2)
        by_hidden = (by_mu @ mean).addmm_(by_log_variance, spread)
        by_hidden.masked_fill_(hidden <= 0, 0)

        def loss() -> Tensor:
            return rest.abs().mean() + weight * normal_divergence(mu, log_variance)

        return loss, (z.mT @ by_hidden, by_mu.mT @ hidden, by_log_variance.mT @ hidden)

    pace = Pace(steps, batch_size, rate)
    descend([down, mean, spread], differentiate, len(merged), pace, generator, on_step)
    return Adapter(down.mT.contiguous(), mean)


def normal_divergence(
    mu: Float[Tensor, "n d"], log_variance: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return KL(N(mu, sigma^2) || N(0, 1)), summed over d, the mean of the samples."""
    terms = mu.square() + log_variance.exp() - log_variance - 1
    return terms.sum(dim=1).mean() / 2
