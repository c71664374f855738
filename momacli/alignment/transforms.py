"""The transforms A_t, one per task, while they are being found."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.features.procrustes import polar_factor


@runtime_checkable
class Transforms(Protocol):
    """A set of matrices A [T, d, d] that learns from the batches that pass by."""

    matrices: Float[Tensor, "T d d"]

    def penalty(self) -> Float[Tensor, ""]:
        """Return what is added to the loss."""
        ...

    def observe(
        self, merged: Sequence[Float[Tensor, "n d"]], finetuned: Sequence[Float[Tensor, "n d"]]
    ) -> None:
        """Take in one step's features, after the backward pass."""
        ...


class RunningProcrustes:
    """A_t exactly on O(d): the polar factor of a running sum of z_t z_m^T.

    Variable projection: for the squared distance of features the best A_t given the encoder
    is known in closed form, so it needs no learning rate and no penalty.
    """

    def __init__(self, start: Float[Tensor, "T d d"], *, memory: float, solve_every: int):
        """Begin with cross-covariances `start` (sums of z_t z_m^T, one sample's weight each)."""
        self._sums = start
        self._memory = memory
        self._solve_every = solve_every
        self._steps = 0
        self.matrices = polar_factor(start)

    def penalty(self) -> Float[Tensor, ""]:
        """Return zero: the constraint is exact."""
        return self.matrices.new_zeros(())

    @torch.no_grad()
    def observe(
        self, merged: Sequence[Float[Tensor, "n d"]], finetuned: Sequence[Float[Tensor, "n d"]]
    ) -> None:
        """Add this step's mean of z_t z_m^T, and solve anew every few steps."""
        for t, (z_m, z_t) in enumerate(zip(merged, finetuned, strict=True)):
            self._sums[t].lerp_(z_t.mT @ z_m / len(z_m), 1 - self._memory)
        self._steps += 1
        if self._steps % self._solve_every == 0:
            self.matrices = polar_factor(self._sums)


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
        merged: Sequence[Float[Tensor, "n d"]],  # noqa: ARG002 - learns from gradients
        finetuned: Sequence[Float[Tensor, "n d"]],  # noqa: ARG002
    ) -> None:
        """Take a step of Adam."""
        self._adam.step()
        self._adam.zero_grad()
