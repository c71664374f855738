"""The transforms A_t, one per task, while they are being found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from momacli.features.families import FAMILIES, Moments, moments
from momacli.shapes import Float


@runtime_checkable
class Transforms(Protocol):
    """A set of matrices A [T, d, d] that learns from the batches that pass by."""

    matrices: Float[Tensor, "T d d"]

    def penalty(self) -> Float[Tensor, ""]:
        """Return what is added to the loss."""
        ...

    def observe(
        self, merged: Sequence[Float[Tensor, "_ d"]], finetuned: Sequence[Float[Tensor, "_ d"]], /
    ) -> None:
        """Take in one step's features, after the backward pass."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs to go on after the present step."""
        ...

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state after `steps` steps."""
        ...


class RunningSolution:
    """A_t in closed form from running moments of the features.

    Variable projection: for the squared distance of features the best member of a family
    (orthogonal by default) is known given the encoder, so it needs no learning rate and no
    penalty, and orthogonal matrices are exactly so.
    """

    def __init__(self, start: Moments, *, family: str, memory: float, solve_every: int):
        """Begin with the moments of all samples; they decay by `memory` a step, the prior stays."""
        self._moments = start
        self._solve = FAMILIES[family]
        self._memory = memory
        self._solve_every = solve_every
        self._steps = 0
        self.matrices: Float[Tensor, "T d d"] = self._solve(start).float()

    def penalty(self) -> Float[Tensor, ""]:
        """Return zero: the constraint is exact."""
        return self.matrices.new_zeros(())

    @torch.no_grad()
    def observe(
        self, merged: Sequence[Float[Tensor, "_ d"]], finetuned: Sequence[Float[Tensor, "_ d"]]
    ) -> None:
        """Take in this step's moments, and solve anew every few steps."""
        for t, (z_m, z_t) in enumerate(zip(merged, finetuned, strict=True)):
            now = moments(z_m, z_t)
            self._moments.cross[t].lerp_(now.cross[0], 1 - self._memory)
            self._moments.gram[t].lerp_(now.gram[0], 1 - self._memory)
        self._steps += 1
        if self._steps % self._solve_every == 0:
            self.matrices = self._solve(replace(self._moments, start=self.matrices)).float()

    def state(self) -> dict[str, Tensor]:
        """Return the running moments and the matrices in use."""
        kept = self._moments
        return {"cross": kept.cross, "gram": kept.gram, "matrices": self.matrices}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state after `steps` steps."""
        self._steps = steps
        for name, value in self.state().items():
            value.copy_(state[name])


class PenalisedMatrices:
    """The paper's: any square matrices, drawn towards O(d) by alpha |A^T A - I| (MOMA Eq. 10)."""

    def __init__(self, start: Float[Tensor, "T d d"], *, rate: float, alpha: float):
        """Begin at `start`, learned by Adam."""
        self.matrices = start.clone().requires_grad_(True)
        self._adam = torch.optim.Adam([self.matrices], lr=rate)
        self._alpha = alpha

    def penalty(self) -> Float[Tensor, ""]:
        """Return alpha sum_t |A_t^T A_t - I|_F."""
        eye = torch.eye(self.matrices.shape[-1], device=self.matrices.device)
        distance = self.matrices.mT @ self.matrices - eye
        return self._alpha * (distance.square().sum(dim=(1, 2)) + 1e-12).sqrt().sum()

    def observe(
        self,
        _merged: Sequence[Float[Tensor, "_ d"]],
        _finetuned: Sequence[Float[Tensor, "_ d"]],
        /,
    ) -> None:
        """Take a step of Adam; the gradients say all there is to learn."""
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Return the matrices and Adam's two moments of them."""
        kept = self._adam.state.get(self.matrices, {})
        zero = torch.zeros_like(self.matrices)
        moments = {name: kept.get(name, zero) for name in ("exp_avg", "exp_avg_sq")}
        return {"matrices": self.matrices.detach(), **moments}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state after `steps` steps."""
        with torch.no_grad():
            self.matrices.copy_(state["matrices"])
        moments = {name: state[name].to(self.matrices) for name in ("exp_avg", "exp_avg_sq")}
        self._adam.state[self.matrices] = {"step": torch.tensor(float(steps)), **moments}
