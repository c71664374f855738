"""SCE (Wan et al. 2024, FuseChat, arXiv:2408.07990): select, calculate, erase.

1. Select the entries of a tensor that vary most between experts, `density` of those that vary.
2. Calculate one coefficient per expert: eta_t = |tau^_t|^2 / sum_s |tau^_s|^2.
3. Erase what is against the sign of the entry's sum; the rest is averaged with weights eta_t.

mergekit makes all eta_t equal when the mean squares add up to less than 1e-6, which those of
real fine-tuning mostly do, and empties tensors of fewer than 1 / density entries; neither is
done here. Where nothing varies (one expert, or all the same) there is nothing to select by,
and everything is kept.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momacli.errors import UsageError
from momacli.methods._selection import count_to_keep

ELEMENTWISE = False


def sce(
    task_vectors: Float[Tensor, "T *shape"],
    *,
    density: float = 0.1,
) -> Float[Tensor, "*shape"]:
    """Return the weighted mean of the selected, sign-consistent task vectors.

    density: share of the varying entries that is selected, in (0, 1]; 0.1 is in the published
        configuration of the authors' FuseChat-7B-v2.0, 1 selects all (mergekit's default).
    """
    if not 0 < density <= 1:
        raise UsageError(f"density: expected above 0 and at most 1, found {density}")
    selected = torch.where(_varying_most(task_vectors, density), task_vectors, 0.0)
    gamma = torch.where(selected.sum(dim=0) >= 0, 1.0, -1.0)
    consistent = selected * gamma > 0
    squares = selected.reshape(len(selected), -1).double().square().sum(dim=1)
    eta = squares / squares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    w = eta.to(selected.dtype).reshape(-1, *[1] * (selected.ndim - 1)) * consistent
    total = w.sum(dim=0)
    return torch.where(total > 0, (w * selected).sum(dim=0) / total, 0.0)


def _varying_most(
    task_vectors: Float[Tensor, "T *shape"], density: float
) -> Bool[Tensor, "*shape"]:
    moved = task_vectors - task_vectors[0]  # so that equal experts vary by exactly 0
    variance = (moved - moved.mean(dim=0)).square().mean(dim=0)
    keep = count_to_keep(density, int(variance.count_nonzero()))
    if keep == 0 or density == 1:
        return torch.ones_like(variance, dtype=torch.bool)
    return variance >= variance.flatten().kthvalue(variance.numel() - keep + 1).values
