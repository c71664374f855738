"""WUDI merging (Cheng et al. 2025, arXiv:2503.08099), an optimization that sees no data.

tau_m starts at sum_t tau_t and takes `steps` steps of Adam down

    sum_t |(tau_m - tau_t) tau_t^T|_F^2 / |tau_t|_F^2,

the interference with each task on the inputs that its own update spans. Matrices only; every
other tensor is the mean of its task vectors, as in FusionBench. The authors' code changes only
the matrices of attention and MLP and leaves the rest of the model at the base.

The gradient is 2 (tau_m - S) H + G with S the sum, H = sum_t tau_t^T tau_t / |tau_t|^2 and G the
gradient at S, so a step is one product whatever the number of tasks. A zero task vector, where
the public code divides by zero, interferes with nothing. The step is absolute: tau_m moves by at
most about lr * steps an entry, so the result does not scale with the task vectors.
"""

import math
from typing import Any

import torch
from torch import Tensor

from momacli.methods._parts import Parts, TensorParts
from momacli.methods._row_blocks import summed
from momacli.methods._spectral import is_matrix
from momacli.shapes import Float

ELEMENTWISE = False

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as its authors recommend and PyTorch has them. The steps are written out here, for
PyTorch's own optimizers import its compiler first, which takes as long as PyTorch itself."""


def wudi(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    steps: int = 300,
    lr: float = 1e-5,
    lam: float = 1.0,
    statistic: Float[Tensor, "T n n"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return lam times the sum of the task vectors after `steps` steps against interference.

    steps: 300 is the paper's; FusionBench's configuration has 400.
    lr: of Adam, in units of the weights; 1e-5 is the paper's.
    lam: factor on the result; the paper has none, which is 1.
    statistic: tau_t^T tau_t / |tau_t|^2 of the whole matrix, where these are but some of its rows.
    """
    if not is_matrix(task_vectors):
        return lam * task_vectors.mean(dim=0)
    total = task_vectors.sum(dim=0)
    at_start = torch.zeros_like(total)
    if statistic is None:
        norms = task_vectors.square().sum(dim=(1, 2), keepdim=True).sqrt()
        units = torch.where(norms > 0, task_vectors / norms, 0.0)
        for tau, unit in zip(task_vectors, units, strict=True):
            at_start += torch.linalg.multi_dot([total - tau, unit.mT, unit])
        stacked = units.flatten(0, 1)
        H = stacked.mT @ stacked
    else:
        for tau, of_task in zip(task_vectors, statistic, strict=True):
            at_start += (total - tau) @ of_task
        H = statistic.sum(dim=0)

    moved, mean, square = (torch.zeros_like(total) for _ in range(3))
    for step in range(1, steps + 1):
        gradient = 2 * (moved @ H + at_start)
        mean.lerp_(gradient, 1 - _BETA_1)
        square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        size = (square.sqrt() / math.sqrt(1 - _BETA_2**step)).add_(_EPSILON)
        moved.addcdiv_(mean, size, value=-lr / (1 - _BETA_1**step))
    return lam * (total + moved)


def in_parts(**_options: Any) -> Parts:
    """Return how parts of a matrix are merged: rows, which interfere by themselves."""
    return Parts(_measure, rows=True, tall=True)


def _measure(tensor: TensorParts) -> dict[str, Any]:
    grams = summed(tau.double().mT @ tau.double() for _, tau in tensor.matrices())
    squares = grams.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
    return {"statistic": torch.where(squares > 0, grams / squares, 0.0).float()}
