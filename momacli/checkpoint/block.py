"""A stretch of one tensor of all models: the base's values and the experts' task vectors."""

from dataclasses import dataclass

import numpy as np

from momacli.checkpoint.ahead import length_there
from momacli.checkpoint.arrays import Array
from momacli.checkpoint.judging import check_finite
from momacli.checkpoint.nonfinite import SetAside
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.spans import Span


class Block:
    """A stretch of n values of one tensor, in float32, or float64 where an input has that.

    Its memory is used again for a later block.
    """

    def __init__(
        self,
        theta_0: Array,
        rows: Array,
        theta_1: Array | None = None,
        aside: SetAside | None = None,
        *,
        subtracted: bool = True,
    ):
        """rows: the task vectors, or the experts, of which the base is not subtracted yet."""
        self.theta_0 = theta_0  # [n]
        self.theta_1 = theta_1  # [n], the expert itself where there is exactly one
        self.aside = aside  # entries that are not finite, where that is tolerated
        self._rows, self._subtracted = rows, subtracted

    @property
    def thetas(self) -> Array | None:
        """The experts [T, n], where nobody has asked for their task vectors: those replace them."""
        return None if self._subtracted else self._rows

    @property
    def taus(self) -> Array:
        """The task vectors [T, n]."""
        if not self._subtracted:
            subtract_base(self.theta_0, self._rows, self._rows)
            self._subtracted = True
        return self._rows

    def first_taus(self, count: int) -> Array:
        """The first entries of the task vectors; the experts, if they are there, remain."""
        if self._subtracted:
            return self._rows[:, :count]
        found = np.empty_like(self._rows[:, :count])
        subtract_base(self.theta_0[:count], self._rows[:, :count], found)
        return found


def subtract_base(theta_0: Array, thetas: Array, taus: Array) -> None:
    """theta_t - theta_0 for every expert, perhaps in place; what is not finite is seen later."""
    with np.errstate(all="ignore"):
        for theta, tau in zip(thetas, taus, strict=True):
            np.subtract(theta, theta_0, out=tau)


@dataclass(frozen=True)
class State:
    """What is known of all that was read of a stretch."""

    finite: bool
    plain: bool  # experts, not task vectors, that have every element


def lengths_there(plan: MergePlan, span: Span) -> list[int]:
    """How much of a stretch each expert has."""
    return [length_there(expert.checkpoint, span) for expert in plan.experts]


def block_of(
    plan: MergePlan, span: Span, theta_0: Array, thetas: Array, taus: Array, state: State
) -> Block:
    """Subtract the base from what was read of the experts, into `taus`, perhaps in place.

    In place of several experts, that is left until it is asked for.
    """
    if state.plain and state.finite and taus is thetas and len(plan.experts) > 1:
        return Block(theta_0, thetas, subtracted=False)
    theta_1 = None
    if len(plan.experts) == 1 and not plan.experts[0].is_task_vector:
        theta_1 = thetas[0].copy()
    if state.plain:
        subtract_base(theta_0, thetas, taus)
    else:
        lengths = lengths_there(plan, span)
        for tau, theta, expert, there in zip(taus, thetas, plan.experts, lengths, strict=True):
            if expert.is_task_vector:
                tau[:there] = theta[:there]
            else:
                with np.errstate(all="ignore"):
                    np.subtract(theta[:there], theta_0[:there], out=tau[:there])
            tau[there:] = 0
            if theta_1 is not None:
                theta_1[there:] = theta_0[there:]
    aside = None if state.finite else check_finite(plan, span, theta_0, taus)
    if aside is not None and theta_1 is not None:
        theta_1[aside.where] = 0
    return Block(theta_0, taus, theta_1, aside)
