"""SCE (Wan et al. 2024, FuseChat, arXiv:2408.07990): select, calculate, erase.

1. Select the entries of a tensor that vary most between experts, `density` of those that vary.
2. Calculate one coefficient per expert: eta_t = |tau^_t|^2 / sum_s |tau^_s|^2.
3. Erase what is against the sign of the entry's sum; the rest is averaged with weights eta_t.

mergekit makes all eta_t equal when the mean squares add up to less than 1e-6, which those of
real fine-tuning mostly do, and empties tensors of fewer than 1 / density entries; neither is
done here. Where nothing varies (one expert, or all the same) there is nothing to select by,
and everything is kept.
"""

from collections.abc import Iterator

import numpy as np

from momacli.errors import UsageError
from momacli.methods._arrays import on_entries
from momacli.methods._ranks import count_to_keep, entries_of_rank
from momacli.shapes import Float, Int

ELEMENTWISE = False

_PIECE = 1 << 13  # entries of each expert that are computed with at a time, in the cache


@on_entries
def sce(
    task_vectors: Float[np.ndarray, "T n"],
    *,
    density: float = 0.1,
) -> Float[np.ndarray, " n"]:
    """Return the weighted mean of the selected, sign-consistent task vectors.

    density: share of the varying entries that is selected, in (0, 1]; 0.1 is in the published
        configuration of the authors' FuseChat-7B-v2.0, 1 selects all (mergekit's default).
    """
    if not 0 < density <= 1:
        raise UsageError(f"density: expected above 0 and at most 1, found {density}")
    selected = _varying_most(task_vectors, density)
    if selected is None:
        return _calculate_and_erase(task_vectors)
    merged = np.zeros_like(task_vectors, shape=task_vectors.shape[1:])
    merged[selected] = _calculate_and_erase(task_vectors[:, selected])
    return merged


def _varying_most(
    task_vectors: Float[np.ndarray, "T n"], density: float
) -> Int[np.ndarray, " k"] | None:
    """Places of the entries that vary most; None where all are selected."""
    if density == 1:
        return None
    variance = np.empty_like(task_vectors, shape=task_vectors.shape[1:])
    for piece in _pieces(task_vectors):
        moved = task_vectors[:, piece] - task_vectors[0, piece]  # equal experts vary by exactly 0
        moved -= moved.mean(axis=0)
        np.einsum("tn,tn->n", moved, moved, out=variance[piece])
    keep = count_to_keep(density, int(np.count_nonzero(variance)))
    if keep == 0:
        return None
    lowest = entries_of_rank(variance[None], variance.size - keep + 1)[0]
    return np.flatnonzero(variance >= lowest)


def _calculate_and_erase(selected: Float[np.ndarray, "T k"]) -> Float[np.ndarray, " k"]:
    """Return the mean of what has the sign of its sum, weighted with eta."""
    squares = np.zeros(len(selected))
    for piece in _pieces(selected):
        exact = selected[:, piece].astype(np.float64)
        squares += np.einsum("tn,tn->t", exact, exact)
    eta = squares / max(squares.sum(), np.finfo(np.float64).tiny)
    eta = eta.astype(selected.dtype)[:, None]
    mean = np.zeros_like(selected, shape=selected.shape[1:])
    for piece in _pieces(selected):
        tau = selected[:, piece]
        positive = tau.sum(axis=0) >= 0
        w = eta * np.where(positive, tau > 0, tau < 0)
        total = w.sum(axis=0)
        w *= tau
        np.divide(w.sum(axis=0), total, out=mean[piece], where=total > 0)
    return mean


def _pieces(values: Float[np.ndarray, "T n"]) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, values.shape[1], _PIECE))
