"""DARE (Yu et al. 2024, arXiv:2311.03099): drop entries at random, rescale the rest, merge.

tau^_t = m_t * tau_t / (1 - p), each entry of m_t being 0 with probability p; its expectation is
tau_t. What follows is an existing merge of the tau^_t.

The authors' code rescales only when asked to. mergekit rescales so that the sum of magnitudes
is kept, which is the same up to the chance of one draw. Both draw from one global stream, so
that a mask depends on everything drawn before; here each expert and tensor has its own.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_entries
from momacli.methods._random_mask import Draws, added_to_base_thinned, thinned
from momacli.methods._sums import OnePass
from momacli.methods.average import average, factors
from momacli.methods.task_arithmetic import task_arithmetic
from momacli.methods.ties import TiesStatistic, ties
from momacli.shapes import Float

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
    keep, scale = _kept(drop_rate, lam, rescale=rescale)
    survivors = thinned(task_vectors, draws, keep)
    if then == "ties":
        untrimmed = TiesStatistic(np.zeros(len(survivors)))
        return ties(survivors, lam=scale, weights=weights, aggregate=aggregate, statistic=untrimmed)
    follow = task_arithmetic if then == "task_arithmetic" else average
    return follow(survivors, lam=scale, weights=weights)


def one_pass(
    theta_0: Float[np.ndarray, " n"],
    thetas: Float[np.ndarray, "T n"],
    *,
    draws: Sequence[Draws],
    drop_rate: float = 0.9,
    rescale: bool = True,
    then: Literal["average", "task_arithmetic", "ties"] = "average",
    aggregate: Literal["mean", "sum"] = "mean",
    lam: float = 1.0,
    weights: Float[np.ndarray, " T"] | None = None,
) -> OnePass:
    """Return theta_0 + what `dare` makes of the experts' task vectors."""
    keep, scale = _kept(drop_rate, lam, rescale=rescale)
    if then == "average":
        weights, scale = factors(len(thetas), weights, scale)
    elected: Literal["elected", "mean of elected"] = (
        "elected" if aggregate == "sum" else "mean of elected"
    )
    how = elected if then == "ties" else "all"
    return added_to_base_thinned(theta_0, thetas, draws, keep, weights, how, scale)


def _kept(drop_rate: float, lam: float, *, rescale: bool) -> tuple[float, float]:
    """The share of entries that survive, and the factor on their merge."""
    if not 0 <= drop_rate < 1:
        raise UsageError(f"drop_rate: expected at least 0 and below 1, found {drop_rate}")
    keep = 1 - drop_rate
    return keep, lam / keep if rescale else lam
