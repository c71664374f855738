"""AdaMerging++ (Yang et al. 2024, arXiv:2310.02575): the same after TIES has trimmed.

theta_m^l = theta_0^l + sum_t lambda_t^l Phi(tau_t)^l, where Phi keeps the largest entries of a
task vector whose sign is the elected one (TIES, over the whole vector), and lambda is learned as
by `adamerging`.
"""

from typing import Literal

import numpy as np
from torch import Tensor

from momacli.adaptation.adamerging import Table, start, whole_table
from momacli.adaptation.ensemble import Ensemble
from momacli.adaptation.fit import descend
from momacli.checkpoint.arrays import as_array, as_tensor
from momacli.methods._arrays import on_entries
from momacli.methods._sums import weighted_sum
from momacli.methods.ties import TiesStatistic, first_pass, least_kept
from momacli.shapes import Float

ENCODERS, ENCODERS_PER_EXPERT = 2, 1
"""What is held, in sizes of the merged tensors in float32, as by `adamerging`."""


def adamerging_plus_plus(
    ensemble: Ensemble,
    *,
    density: float = 0.2,
    per: Literal["layer", "task"] = "layer",
    lam: float = 0.3,
    rate: float = 1e-3,
    steps: int = 500,
    batch_size: int = 16,
    clamp: bool = True,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Table:
    """Merge trimmed task vectors with coefficients that make the merged model sure.

    density: share of entries that are kept of each task vector; 0.2 is the paper's.
    per: "layer" learns a coefficient for each tensor of each task, "task" one for each task.
    lam: every coefficient at the start; 0.3 is the paper's.
    rate: learning rate of Adam; 1e-3 is the paper's.
    steps: 500 is the paper's.
    batch_size: samples of each task a step; 16 is the paper's.
    clamp: keep coefficients from 0 to 1, as the authors' code does.
    precision: of the encoder's arithmetic in the steps, float32 or bfloat16; "auto" is bfloat16
        where the device is made for it.
    """
    T = len(ensemble.tasks)
    statistic = first_pass(
        lambda: (ensemble.task_vectors(name).reshape(T, -1) for name in ensemble.tensors),
        density=density,
    )

    def trimmed(name: str) -> Tensor:
        taus = ensemble.task_vectors(name)
        return as_tensor(elected(as_array(taus.reshape(T, -1)), statistic)).reshape(taus.shape)

    learned = start(ensemble, trimmed, per=per, lam=lam, rate=rate, clamp=clamp)
    descend(ensemble, learned, steps=steps, batch_size=batch_size, precision=precision)
    return whole_table(ensemble, learned)


def elected(
    task_vectors: Float[np.ndarray, "T n"], statistic: TiesStatistic
) -> Float[np.ndarray, "T n"]:
    """Return Phi(tau_t): the large entries of each task vector that have the elected sign."""
    least = least_kept(statistic.thresholds, task_vectors.dtype)[:, None]
    trimmed = np.where(np.abs(task_vectors) >= least, task_vectors, 0)
    sign = np.sign(trimmed.sum(axis=0))
    statistic.tally.add(int(np.count_nonzero(sign > 0)) - int(np.count_nonzero(sign < 0)))
    cancelled = (sign == 0) & trimmed.any(axis=0)
    if cancelled.any():
        sign[cancelled] = statistic.majority
    return np.where(trimmed * sign > 0, trimmed, 0).astype(task_vectors.dtype, copy=False)


@on_entries
def with_coefficients(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    coefficients: Table,
    name: str,
    statistic: TiesStatistic,
    density: float = 0.2,
) -> Float[np.ndarray, " n"]:
    """Return sum_t lambda_t Phi(tau_t) of one tensor: how the output is written.

    density: what the statistic was measured with.
    """
    del density
    kept = elected(task_vectors, statistic)
    return weighted_sum(kept, np.array(coefficients[name]), 1.0)
