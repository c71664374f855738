"""Tensors that several processes hold or make together, as torchrun starts them.

With a single process each function hands back what it was given.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

from momacli.errors import OutOfMemoryError
from momacli.merging.ranks import Ranks
from momacli.models.device import needing_memory
from momacli.shapes import Float

ALONE = Ranks(0, 1)


def part_of(total: int, ranks: Ranks) -> slice:
    """The consecutive items, of so many in all, that are this process's to compute."""
    return slice(total * ranks.number // ranks.count, total * (ranks.number + 1) // ranks.count)


def add_up(values: Tensor, ranks: Ranks) -> Tensor:
    """Replace values by their sum over all processes; returns them."""
    if ranks.count > 1:
        torch.distributed.all_reduce(values)
    return values


def rows_of_all(
    own: Float[Tensor, "n d"], place: slice | Tensor, total: int, ranks: Ranks
) -> Float[Tensor, "N d"]:
    """Put together rows of which every process has some, at their own places."""
    if ranks.count == 1:
        return own
    rows = own.new_zeros(total, own.shape[1])
    rows[place] = own
    return add_up(rows, ranks)


def add_up_shares(flat: Float[Tensor, " P"], ranks: Ranks) -> None:
    """Give each process the sum over all of its own share of P, in place; others are undefined.

    P is a multiple of the number of processes.
    """
    if ranks.count > 1:
        for owner, share in enumerate(flat.chunk(ranks.count)):
            torch.distributed.reduce(share, owner)


def spread_shares(flat: Float[Tensor, " P"], ranks: Ranks) -> None:
    """Give every process the shares that the others have in place."""
    if ranks.count > 1:
        shares = list(flat.chunk(ranks.count))
        torch.distributed.all_gather(shares, shares[ranks.number].clone())


@contextmanager
def fitting_all(ranks: Ranks, message: str, *, hint: str) -> Iterator[None]:
    """Raise OutOfMemoryError in every process where the work was too much for any one."""
    short = None
    try:
        with needing_memory(message, hint=hint):
            yield
    except OutOfMemoryError as error:
        short = error
    if not all(ranks.all_of(short is None)):
        raise short or OutOfMemoryError(message, hint=hint)
