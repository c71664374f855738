"""AdaMerging (Yang et al. 2024, arXiv:2310.02575): coefficients of least entropy.

theta_m^l = theta_0^l + sum_t lambda_t^l tau_t^l, where lambda lowers the entropy of the merged
model's answers, summed over all tasks, by Adam on unlabeled samples.

The coefficients are recorded with the output, from which `moma verify` and `moma merge --like`
make it again without data. The authors' code takes two batches a step and calls them one of 16:
`--set batch-size=32` is the same. FusionBench does not clamp, and takes 1000 steps. Tensors
without a gradient, such as running statistics, keep the coefficients of the start.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from momacli.adaptation.coefficients import Coefficients, Per
from momacli.adaptation.ensemble import Ensemble
from momacli.adaptation.fit import descend
from momacli.adaptation.leaves import Leaves
from momacli.methods._arrays import on_entries
from momacli.methods._sums import weighted_sum
from momacli.shapes import Float

ENCODERS, ENCODERS_PER_EXPERT = 2, 1
"""What is held, in sizes of the merged tensors in float32: theta_0, theta_m; and tau_t."""

Table = Mapping[str, Sequence[float]]
"""Coefficients by tensor, one a task."""


def adamerging(
    ensemble: Ensemble,
    *,
    per: Literal["layer", "task"] = "layer",
    lam: float = 0.3,
    rate: float = 1e-3,
    steps: int = 500,
    batch_size: int = 16,
    clamp: bool = True,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Table:
    """Merge with coefficients that make the merged model sure of its answers.

    per: "layer" learns a coefficient for each tensor of each task, "task" one for each task.
    lam: every coefficient at the start; 0.3 is the paper's.
    rate: learning rate of Adam; 1e-3 is the paper's.
    steps: 500 is the paper's; 0 leaves task arithmetic.
    batch_size: samples of each task a step; 16 is the paper's.
    clamp: keep coefficients from 0 to 1, as the authors' code does.
    precision: of the encoder's arithmetic in the steps, float32 or bfloat16; "auto" is bfloat16
        where the device is made for it.
    """
    learned = start(ensemble, ensemble.task_vectors, per=per, lam=lam, rate=rate, clamp=clamp)
    descend(ensemble, learned, steps=steps, batch_size=batch_size, precision=precision)
    return whole_table(ensemble, learned)


def start(
    ensemble: Ensemble,
    task_vectors: Callable[[str], Tensor],
    *,
    per: Per,
    lam: float,
    rate: float,
    clamp: bool,
) -> Coefficients:
    """Take over the network's parameters; what it has besides is merged with `lam` for good."""
    leaves = Leaves({name: ensemble.network.parameters[name] for name in ensemble.learnable})
    others = [name for name in ensemble.tensors if name in ensemble.network.buffers]
    ensemble.load(lambda name: ensemble.base(name) + lam * task_vectors(name).sum(dim=0), others)
    return Coefficients(
        leaves,
        ensemble.base,
        task_vectors,
        count=len(ensemble.tasks),
        per=per,
        start=lam,
        rate=rate,
        clamp=clamp,
    )


def whole_table(ensemble: Ensemble, learned: Coefficients) -> Table:
    """The coefficients of all tensors, those without a gradient as at the start."""
    table = dict.fromkeys(ensemble.tensors, [learned.start] * len(ensemble.tasks))
    return {**table, **learned.table()}


@on_entries
def with_coefficients(
    task_vectors: Float[np.ndarray, "T n"], *, coefficients: Table, name: str
) -> Float[np.ndarray, " n"]:
    """Return sum_t lambda_t tau_t of one tensor: how the output is written, now and again."""
    return weighted_sum(task_vectors, np.array(coefficients[name]), 1.0)
