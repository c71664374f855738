"""Tall matrices that are seen a block of rows at a time: what `_spectral` has of whole ones.

A matrix A of m rows and n columns, m >= n, has the left singular vectors U = A V / sigma, row by
row, once V and sigma are known; these come from A^T A, which is n x n and a sum over blocks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from momacli.methods._spectral import NEGLIGIBLE
from momacli.shapes import Float

Stacks = Callable[[], Iterable[Float[Tensor, "K rows n"]]]
"""Reads blocks of rows of K matrices again from the start, in float64."""


@dataclass(frozen=True)
class Directions:
    """The largest singular values of a tall matrix, and their right singular vectors."""

    v: Float[Tensor, "n k"]
    sigma: Float[Tensor, " k"]

    def left(self, rows: Float[Tensor, "rows n"]) -> Float[Tensor, "rows k"]:
        """The left singular vectors, of a block of the matrix's rows."""
        u: Tensor = rows @ (self.v / self.sigma)
        return u


def leading_directions(stacks: Stacks, count: int | None = None) -> list[Directions]:
    """Return those of the largest `count` singular values of each matrix, largest first.

    As `leading_svd` does, fewer where there are fewer above NEGLIGIBLE. Reads the blocks twice.
    """
    grams = summed(block.mT @ block for block in stacks())
    vs = torch.linalg.eigh(grams).eigenvectors.flip(2)[:, :, :count]
    sigmas = summed((block @ vs).square().sum(dim=1) for block in stacks()).sqrt()
    kept = sigmas > NEGLIGIBLE * sigmas[:, :1]
    return [Directions(v[:, k], s[k]) for v, s, k in zip(vs, sigmas, kept, strict=True)]


def to_isometry(stacks: Stacks) -> Float[Tensor, "k k"]:
    """Return what makes the nearest isometry of the only matrix A [m, k], as A times that.

    Reads the blocks twice.
    """
    [found] = leading_directions(stacks)
    return (found.v / found.sigma) @ found.v.mT


def owned_columns(
    directions: Sequence[Directions], task_vectors: Float[Tensor, "T rows n"]
) -> Float[Tensor, "rows k"]:
    """Return rows of [U_1 .. U_T], the left singular vectors of every task's matrix."""
    blocks = zip(directions, task_vectors.double(), strict=True)
    return torch.cat([one.left(tau) for one, tau in blocks], dim=1)


@dataclass(frozen=True)
class Owned:
    """A merge [U_1 .. U_T] times a matrix, of the directions that each task owns."""

    directions: Sequence[Directions]
    right: Float[Tensor, "k n"]

    def merged(self, task_vectors: Float[Tensor, "T rows n"]) -> Float[Tensor, "rows n"]:
        """The merge of a block of rows, in float64."""
        return owned_columns(self.directions, task_vectors) @ self.right


def summed(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of what all blocks have, of which there is at least one."""
    iterator = iter(parts)
    total = next(iterator).clone()
    for part in iterator:
        total += part
    return total
