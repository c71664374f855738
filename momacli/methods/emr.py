"""EMR-Merging (Huang et al. 2024, arXiv:2405.17461): elect, mask and rescale one expert.

gamma = sign(sum_t tau_t); tau_uni = gamma * max over t of |tau_t| where tau_t has that sign.
The expert is theta_0 + r_t * M_t * tau_uni, M_t = [tau_t * tau_uni > 0] and
r_t = sum |tau_t| / sum |M_t * tau_uni| over the whole model. The result is a model for one
task, not a merge of all: with it a task costs one bit per parameter and one number.

The authors' code adds up means per tensor in r_t instead, so that a bias counts as much as a
matrix. A sum of exactly zero elects the negative sign, as there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.methods._reconstructed_task import checked_task
from momacli.methods._selection import Stacks, tensors_of
from momacli.shapes import Float

ELEMENTWISE = True
STORED_NUMBERS = 1
"""What a task needs besides one bit a parameter."""


@dataclass(frozen=True)
class EmrStatistic:
    """What one entry must know of the whole vector."""

    rescale: Float[Tensor, " T"]  # r_t, float64; 0 where nothing of an expert is left


def first_pass(stacks: Stacks) -> EmrStatistic:
    """Find r_t of every expert, block by block."""
    wanted, left = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for block in tensors_of(stacks):
        aligned = _aligned(block)
        masked = torch.where(aligned > 0, aligned.amax(dim=0), 0.0)
        wanted = wanted + block.abs().sum(dim=1, dtype=torch.float64)
        left = left + masked.sum(dim=1, dtype=torch.float64)
    return EmrStatistic(torch.where(left > 0, wanted / left, 0.0))


def emr(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    task: int | None = None,
    statistic: EmrStatistic | None = None,
) -> Float[Tensor, "*shape"]:
    """Return one expert's task vector as reconstructed from the unified one.

    task: the expert to reconstruct, here by its index; a merge takes its name, and makes a model
        of every expert where none is named.
    statistic: of the whole model, from `first_pass`; without it this tensor stands alone.
    """
    t = checked_task(task, len(task_vectors))
    if statistic is None:
        flat = task_vectors.reshape(len(task_vectors), -1)
        statistic = first_pass(lambda: [flat])
    aligned = _aligned(task_vectors)
    tau_uni = torch.copysign(aligned.amax(dim=0), task_vectors[t])
    return float(statistic.rescale[t]) * torch.where(aligned[t] > 0, tau_uni, 0.0)


def _aligned(task_vectors: Float[Tensor, "T *shape"]) -> Float[Tensor, "T *shape"]:
    """|tau_t| where it has the elected sign, else 0."""
    gamma = torch.where(task_vectors.sum(dim=0) > 0, 1.0, -1.0)
    return (task_vectors * gamma).clamp(min=0)
