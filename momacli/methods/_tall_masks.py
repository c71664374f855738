"""TALL masks: which entries of the multi-task vector one expert recognizes as its own."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from momacli.methods import ties as ties_module
from momacli.methods._selection import Stacks
from momacli.methods._tally import Tally
from momacli.methods.ties import TiesStatistic, ties
from momacli.shapes import Bool, Float

Of = Literal["task_arithmetic", "ties"]


@dataclass(frozen=True)
class MultiTask:
    """How tau_mtl is made of the task vectors of one entry."""

    ties: TiesStatistic | None  # None: their plain sum

    @property
    def tally(self) -> Tally | None:
        """What TIES counts."""
        return None if self.ties is None else self.ties.tally

    def vector(self, task_vectors: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
        """Return tau_mtl, unscaled."""
        if self.ties is None:
            return task_vectors.sum(dim=0)
        return ties(task_vectors, lam=1.0, aggregate="sum", statistic=self.ties)


def first_pass(stacks: Stacks, *, of: Of = "task_arithmetic", density: float = 0.2) -> MultiTask:
    """Find the thresholds of the whole vector if tau_mtl is that of TIES."""
    return MultiTask(ties_module.first_pass(stacks, density=density) if of == "ties" else None)


def recognized(
    tau: Float[Tensor, "*T_and_shape"], tau_mtl: Float[Tensor, "*shape"], mask_lam: float
) -> Bool[Tensor, "*T_and_shape"]:
    """|theta_0 - theta_t| > lambda_t |theta_mtl - theta_t|, for one expert or all of them."""
    return tau.abs() > mask_lam * (tau_mtl - tau).abs()
