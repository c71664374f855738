"""PCB-Merging (Du et al. 2024, arXiv:2410.02396): let the parameters of the tasks compete.

Per expert i, over the whole vector: |tau_i| is clipped at its two extreme quantiles, giving
tau^_i, and n_i = (|tau^_i| - min) / (max - min).
1. Score: exp(T n_i^2) (within the task) times the agreement between tasks.
2. Scores below the top `density` are dropped, the others scaled to [0, 1]: s_i.
3. tau = lambda * sum_i s_i tau^_i / sum_i s_i.

The authors' programs differ in the agreement (option `variant`) and in the quantiles: 1 % for
"normalized", 0.01 % for "raw". Both write exp and tanh for the softmax of the paper. Here a
negative score counts as 0, which matters only if fewer than `density` of them are positive;
and an expert all of whose scores are equal is left out, where the authors divide by zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from momacli.errors import UsageError
from momacli.methods._selection import Stacks, largest_magnitudes, tensors_of
from momacli.shapes import Float

ELEMENTWISE = True

Variant = Literal["normalized", "raw"]
_CLIPPED = {"normalized": 0.01, "raw": 0.0001}  # share of entries at each end


@dataclass(frozen=True)
class PcbStatistic:
    """What the competition for one entry must know of the whole vectors, per expert."""

    smallest: Float[Tensor, " T"]  # magnitude after clipping
    largest: Float[Tensor, " T"]
    lowest: Float[Tensor, " T"]  # score kept
    highest: Float[Tensor, " T"]


def first_pass(
    stacks: Stacks, *, variant: Variant = "normalized", density: float = 0.05
) -> PcbStatistic:
    """Find the range of the magnitudes, then that of the scores, block by block."""
    if not 0 < density <= 1:
        raise UsageError(f"density: expected above 0 and at most 1, found {density}")
    clipped = _CLIPPED[variant]
    smallest = torch.from_numpy(largest_magnitudes(stacks, density=1 - clipped))
    largest = torch.from_numpy(largest_magnitudes(stacks, density=clipped))

    def scores() -> Iterator[Tensor]:
        return (_scores(block, smallest, largest, variant) for block in tensors_of(stacks))

    highest = torch.zeros_like(largest)
    for block in scores():
        highest = torch.cat([highest.to(block)[:, None], block], dim=1).amax(dim=1)
    lowest = torch.from_numpy(largest_magnitudes(scores, density=density))
    return PcbStatistic(smallest, largest, lowest, highest)


def pcb(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    variant: Variant = "normalized",
    density: float = 0.05,
    lam: float = 1.2,
    weights: Float[Tensor, " T"] | None = None,
    statistic: PcbStatistic | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the mean of the clipped task vectors, weighted by their scores.

    variant: the agreement of tau_i. "normalized": sum_j tanh(n_i n_j), with the signs of tau_i
        and tau_j, is the authors' vision program. "raw": tanh(tau_i * sum_j tau_j) is their
        short program; products of real task vectors are so small that tanh is linear there.
    density: share of scores that is kept per expert, in (0, 1]; 0.05 is the authors'.
    lam: 1.2 is where the authors start to search it per task by validation.
    weights: the factor of each task that they search, default 1 each.
    statistic: of the whole model, from `first_pass`; without it this tensor stands alone.
    """
    T = len(task_vectors)
    if statistic is None:
        flat = task_vectors.reshape(T, -1)
        statistic = first_pass(lambda: [flat], variant=variant, density=density)
    smallest, largest, lowest, highest = (
        bound.reshape(T, *[1] * (task_vectors.ndim - 1)).to(task_vectors)
        for bound in (statistic.smallest, statistic.largest, statistic.lowest, statistic.highest)
    )
    scores = _scores(task_vectors, smallest, largest, variant)
    s = _in_range(scores.clamp(min=lowest), lowest, highest)
    tau = task_vectors.sign() * task_vectors.abs().clamp(min=smallest, max=largest)
    if weights is not None:
        tau = weights.to(tau).reshape_as(smallest) * tau
    return lam * (s * tau).sum(dim=0) / s.sum(dim=0).clamp(min=1e-12)


def _scores(
    task_vectors: Float[Tensor, "T *shape"], smallest: Tensor, largest: Tensor, variant: Variant
) -> Float[Tensor, "T *shape"]:
    """Return what each entry brings to the competition, 0 or more.

    exp(T (n^2 - 1)) stands for exp(T n^2), which overflows for T of 89; the factor cancels.
    """
    T = len(task_vectors)
    smallest, largest = (x.reshape(T, *[1] * (task_vectors.ndim - 1)) for x in (smallest, largest))
    n = _in_range(task_vectors.abs().clamp(min=smallest, max=largest), smallest, largest)
    if variant == "raw":
        agreement = torch.tanh(task_vectors * task_vectors.sum(dim=0))
    else:
        signed = task_vectors.sign() * n
        agreement = _agreement(signed)
    return n.square_().sub_(1).mul_(T).exp_().mul_(agreement).clamp_(min=0)


def _agreement(signed: Float[Tensor, "T *shape"]) -> Float[Tensor, "T *shape"]:
    """Return sum_j tanh(n_i n_j) of every expert i; each pair is computed once."""
    found = torch.tanh(signed.square())
    for i, one in enumerate(signed):
        for j in range(i):
            both = torch.tanh(one * signed[j])
            found[i] += both
            found[j] += both
    return found


def _in_range(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map [low, high] to [0, 1]; an empty range to 0."""
    return torch.where(high > low, (x - low) / (high - low), 0.0)
