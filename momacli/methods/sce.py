"""SCE (Wan et al. 2024, FuseChat, arXiv:2408.07990): select, calculate, erase.

1. Select the entries of a tensor that vary most between experts, `density` of those that vary.
2. Calculate one coefficient per expert: eta_t = |tau^_t|^2 / sum_s |tau^_s|^2.
3. Erase what is against the sign of the entry's sum; the rest is averaged with weights eta_t.

mergekit makes all eta_t equal when the mean squares add up to less than 1e-6, which those of
real fine-tuning mostly do, and empties tensors of fewer than 1 / density entries; neither is
done here. Where nothing varies (one expert, or all the same) there is nothing to select by,
and everything is kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_entries
from momacli.methods._parts import Parts, TensorParts
from momacli.methods._ranks import count_to_keep, entries_of_rank
from momacli.methods._selection import Stacks, arrays_of, largest_magnitudes
from momacli.shapes import Bool, Float

ELEMENTWISE = False

_PIECE = 1 << 13
"""Entries of each expert that are computed with at a time, in the cache; parts of a tensor hold
whole pieces, so that its squares are summed as those of the whole are."""


@dataclass(frozen=True)
class Selection:
    """What the merge of one entry must know of the whole tensor."""

    least: float  # the smallest variance selected; 0 selects everything
    eta: Float[np.ndarray, " T"]


@on_entries
def sce(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    density: float = 0.1,
    statistic: Selection | None = None,
) -> Float[np.ndarray, " n"]:
    """Return the weighted mean of the selected, sign-consistent task vectors.

    density: share of the varying entries that is selected, in (0, 1]; 0.1 is in the published
        configuration of the authors' FuseChat-7B-v2.0, 1 selects all (mergekit's default).
    statistic: of the whole tensor, where these are but a part of it.
    """
    if not 0 < density <= 1:
        raise UsageError(f"density: expected above 0 and at most 1, found {density}")
    variance = _variances(task_vectors, everything=density == 1)
    if statistic is None:
        least = _least_of(variance, density)
        statistic = Selection(least, _eta([(task_vectors, variance >= least)]))
    return _erase(task_vectors, variance >= statistic.least, statistic.eta)


def in_parts(*, density: float = 0.1) -> Parts:
    """Return how parts of a tensor are merged."""
    return Parts(partial(_measure, density=density))


def _measure(tensor: TensorParts, *, density: float) -> dict[str, Any]:
    """What `sce` finds out of a whole tensor by itself."""
    everything = density == 1
    least = np.inf if everything else largest_magnitudes(_Varying(tensor), density=density)[0]
    if np.isinf(least):  # or nothing varies
        least = 0.0
    parts = ((part, _variances(part, everything=everything) >= least) for part in tensor())
    return {"statistic": Selection(float(least), _eta(parts))}


@dataclass(frozen=True)
class _Varying:
    """The variances of a tensor's entries [1, n] but for those that do not vary."""

    stacks: TensorParts

    def __call__(self) -> Iterator[Float[np.ndarray, "1 n"]]:
        """Of all entries."""
        return self._of(self.stacks)

    def sample(self) -> Iterator[Float[np.ndarray, "1 n"]]:
        """Of some."""
        return self._of(self.stacks.sample)

    def _of(self, stacks: Stacks) -> Iterator[Float[np.ndarray, "1 n"]]:
        for block in arrays_of(stacks):
            variance = _variances(block)
            yield variance[None, variance > 0]


def _variances(
    task_vectors: Float[np.ndarray, "T n"], *, everything: bool = False
) -> Float[np.ndarray, " n"]:
    """The variance of each entry, times T; not computed where everything is selected."""
    variances = np.zeros_like(task_vectors, shape=task_vectors.shape[1:])
    for piece in () if everything else _pieces(task_vectors):
        moved = task_vectors[:, piece] - task_vectors[0, piece]  # equal experts vary by exactly 0
        moved -= moved.mean(axis=0)
        np.einsum("tn,tn->n", moved, moved, out=variances[piece])
    return variances


def _least_of(variance: Float[np.ndarray, " n"], density: float) -> float:
    """The smallest variance of those entries that vary most; 0 where all are selected."""
    keep = count_to_keep(density, int(np.count_nonzero(variance))) if density < 1 else 0
    return float(entries_of_rank(variance[None], variance.size - keep + 1)[0]) if keep else 0.0


def _eta(
    parts: Iterable[tuple[Float[np.ndarray, "T n"], Bool[np.ndarray, " n"]]],
) -> Float[np.ndarray, " T"]:
    """Each expert's share of the squares of what is selected, in float64.

    parts: task vectors and what is selected of them, from the first entry to the last.
    """
    squares = np.zeros(0)
    for tau, selected in parts:
        squares = squares if squares.size else np.zeros(len(tau))
        for piece in _pieces(tau):
            exact = tau[:, piece][:, selected[piece]].astype(np.float64)
            squares += np.einsum("tn,tn->t", exact, exact)
    eta: np.ndarray = squares / max(squares.sum(), np.finfo(np.float64).tiny)
    return eta


def _erase(
    task_vectors: Float[np.ndarray, "T n"],
    selected: Bool[np.ndarray, " n"],
    eta: Float[np.ndarray, " T"],
) -> Float[np.ndarray, " n"]:
    """Return the mean of what is selected and has the sign of its sum, weighted with eta."""
    factors = eta.astype(task_vectors.dtype)[:, None]
    merged = np.zeros_like(task_vectors, shape=task_vectors.shape[1:])
    for piece in _pieces(task_vectors):
        tau = task_vectors[:, piece][:, selected[piece]]
        positive = tau.sum(axis=0) >= 0
        w = factors * np.where(positive, tau > 0, tau < 0)
        total = w.sum(axis=0)
        w *= tau
        mean = np.zeros_like(total)
        np.divide(w.sum(axis=0), total, out=mean, where=total > 0)
        merged[piece][selected[piece]] = mean
    return merged


def _pieces(values: Float[np.ndarray, "T n"]) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, values.shape[1], _PIECE))
