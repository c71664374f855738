"""Exact selection by magnitude over tensors that are only ever seen a block at a time."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

Stacks = Callable[[], Iterable[Float[Tensor, "T _"]]]
"""Reads the stacked task vectors again from the start, one flat block [T, n] at a time."""

_HIGH_BITS = 16
_LOW_BITS = 31 - _HIGH_BITS


def count_to_keep(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: floor(density * size), at least one if any."""
    if size == 0 or density <= 0:
        return 0
    return min(size, max(1, int(density * size)))


def largest_magnitudes(stacks: Stacks, *, density: float) -> Float[Tensor, " T"]:
    """Return for each expert the magnitude above or at which its top entries lie.

    Exactly the `count_to_keep(density, d)`-th largest |tau_t| over all blocks together, equal
    bit for bit to sorting the whole vector, in two passes and constant memory: magnitudes of
    float32 numbers order like their bit patterns, so the first pass counts the high 16 bits
    and the second the low 15 bits within the one bucket that holds the answer. An expert of
    which nothing is kept gets infinity.
    """
    counts: Tensor | None = None
    size = 0
    for block in stacks():
        bits = _magnitude_bits(block)
        size += bits.shape[1]
        part = torch.stack(
            [torch.bincount(row >> _LOW_BITS, minlength=1 << _HIGH_BITS) for row in bits]
        )
        counts = part if counts is None else counts + part
    if counts is None:
        return torch.empty(0)
    keep = count_to_keep(density, size)
    if keep == 0:
        return torch.full((counts.shape[0],), torch.inf)
    buckets, wanted = _descend(counts, torch.full((counts.shape[0],), keep))

    low = torch.zeros(counts.shape[0], 1 << _LOW_BITS, dtype=torch.long)
    for block in stacks():
        for t, row in enumerate(_magnitude_bits(block)):
            inside = row[(row >> _LOW_BITS) == buckets[t]] & ((1 << _LOW_BITS) - 1)
            low[t] += torch.bincount(inside, minlength=1 << _LOW_BITS)
    offsets, _ = _descend(low, wanted)
    return ((buckets << _LOW_BITS) | offsets).to(torch.int32).view(torch.float32)


def _magnitude_bits(block: Tensor) -> Tensor:
    """The bit patterns of |block| as int32 [T, n]; their order is the order of magnitudes."""
    return block.to(torch.float32).contiguous().view(torch.int32) & 0x7FFFFFFF


def _descend(counts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """From the top bucket down: the bucket holding the wanted-th entry, and its rank in there."""
    from_top = counts.flip(1).cumsum(1)
    index = (from_top < wanted[:, None]).sum(1)  # buckets wholly above the answer
    above = torch.where(
        index > 0, from_top.gather(1, (index - 1).clamp(min=0)[:, None])[:, 0], 0
    )
    return counts.shape[1] - 1 - index, wanted - above
