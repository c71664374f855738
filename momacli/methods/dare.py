"""DARE (Yu et al. 2024, arXiv:2311.03099): drop entries at random, rescale the rest, merge.

tau^_t = m_t * tau_t / (1 - p), each entry of m_t being 0 with probability p; its expectation is
tau_t. What follows is an existing merge of the tau^_t.

The authors' code rescales only when asked to. mergekit rescales so that the sum of magnitudes
is kept, which is the same up to the chance of one draw. Both draw from one global stream, so
that a mask depends on everything drawn before; here each expert and tensor has its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from momacli.errors import UsageError
from momacli.methods._arrays import on_entries
from momacli.methods._random_mask import Draws

ELEMENTWISE = True


@on_entries
def dare(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    draws: Sequence[Draws],
    drop_rate: float = 0.9,
    rescale: bool = True,
    then: Literal["average", "task_arithmetic", "ties"] = "average",
    aggregate: Literal["mean", "sum"] = "mean",
    lam: float = 1.0,
    weights: Float[np.ndarray, " T"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Return the merge of the randomly thinned task vectors.

    drop_rate: the paper's p, in [0, 1); 0.9 is its usual value for language models.
    rescale: whether survivors are divided by 1 - p, as in the paper.
    then: how the survivors are merged; "average" is the default of the authors' code. "ties"
        elects signs among them and drops the rest; the random drop takes the place of its
        trim, as in mergekit. (The authors then trim to 20 % as well, which at p of 0.8 and
        more removes nothing.)
    aggregate: for "ties" only, see there; "sum" is mergekit's dare_ties.
    lam: factor on the merge; 1 is the default of the authors' code for all three.
    weights: one per expert, as in the method that follows.
    """
    if not 0 <= drop_rate < 1:
        raise UsageError(f"drop_rate: expected at least 0 and below 1, found {drop_rate}")
    keep = 1 - drop_rate
    survivors = [
        _Survivors(places := drawn.kept(len(tau), keep), tau[places])
        for tau, drawn in zip(task_vectors, draws, strict=True)
    ]
    factors = np.ones(len(task_vectors)) if weights is None else weights.astype(np.float64)
    if then == "average":
        factors = factors / factors.sum()
    survivors = [one.scaled(factor) for one, factor in zip(survivors, factors, strict=True)]
    total = np.zeros_like(task_vectors[0])
    for one in survivors:
        total[one.places] += one.values
    if then == "ties":
        gamma = np.where(total < 0, total.dtype.type(-1), total.dtype.type(1))
        total = _agreeing(survivors, gamma, mean=aggregate == "mean")
    merged: np.ndarray = total * total.dtype.type(lam / keep if rescale else lam)
    return merged


@dataclass(frozen=True)
class _Survivors:
    """The entries of one expert that are left."""

    places: Int64[np.ndarray, " kept"]
    values: Float[np.ndarray, " kept"]

    def scaled(self, factor: float) -> "_Survivors":
        return _Survivors(self.places, self.values * self.values.dtype.type(factor))


def _agreeing(
    survivors: Sequence[_Survivors], gamma: Float[np.ndarray, " n"], *, mean: bool
) -> Float[np.ndarray, " n"]:
    """Sum or mean of the survivors whose sign is gamma."""
    total, count = np.zeros_like(gamma), np.zeros_like(gamma)
    for one in survivors:
        magnitudes = np.maximum(one.values * gamma[one.places], 0)  # 0 against the sign
        total[one.places] += magnitudes
        count[one.places] += magnitudes > 0
    if mean:
        total /= np.maximum(count, 1)
    total *= gamma
    return total
