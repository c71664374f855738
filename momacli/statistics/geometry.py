"""How task vectors lie to each other: norms, cosines and sparsity from one pass over them.

All follows from the Gram matrix <tau_s, tau_t>, which is a sum over entries and so can be
taken a block at a time. Sums are in float64.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Geometry:
    """Sums over the blocks of the task vectors seen so far."""

    T: int
    size: int = 0  # entries of each task vector
    base_square: float = 0.0  # |theta_0|^2 over the same entries
    gram: Tensor = field(init=False)  # [T, T] float64
    zeros: Tensor = field(init=False)  # [T], entries that are exactly zero

    def __post_init__(self) -> None:
        self.gram = torch.zeros(self.T, self.T, dtype=torch.float64)
        self.zeros = torch.zeros(self.T, dtype=torch.long)

    def add(self, taus: Tensor, theta_0: Tensor) -> None:
        """Take in one block: taus [T, n] and the base's values there [n]."""
        wide = taus.double()
        self.gram += wide @ wide.mT
        self.zeros += (taus == 0).sum(dim=1)
        self.base_square += float(theta_0.double().square().sum())
        self.size += taus.shape[1]

    @property
    def norms(self) -> tuple[float, ...]:
        """|tau_t| of each task vector."""
        return tuple(self.gram.diagonal().sqrt().tolist())

    @property
    def base_norm(self) -> float:
        """|theta_0| over the same entries."""
        return math.sqrt(self.base_square)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Share of entries that are exactly zero; 0 where there is no entry."""
        return tuple((self.zeros / max(1, self.size)).tolist())

    @property
    def cosines(self) -> tuple[tuple[float | None, ...], ...]:
        """Cosine of each pair; None where one of the two is zero, which has no direction."""
        norms = self.gram.diagonal().sqrt()
        scale = norms[:, None] * norms
        table = (self.gram / scale).clamp(-1, 1).tolist()
        return tuple(
            tuple(value if norms[s] > 0 and norms[t] > 0 else None for t, value in enumerate(row))
            for s, row in enumerate(table)
        )


def total(T: int, parts: Iterable[Geometry]) -> Geometry:
    """The sums of all parts together."""
    result = Geometry(T)
    for part in parts:
        result.gram += part.gram
        result.zeros += part.zeros
        result.base_square += part.base_square
        result.size += part.size
    return result


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: its module path up to the first number in it.

    Outside of the layers, the path without the last word, of at most two words.
    """
    words = name.split(".")
    for i, word in enumerate(words):
        if word.isdecimal() and i:
            return ".".join(words[: i + 1])
    return ".".join(words[: max(1, min(2, len(words) - 1))])


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key by which layer 10 comes after layer 2."""
    words = name.split(".")
    return tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words)
