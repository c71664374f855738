"""The arithmetic of adapters: rows of a base's tensor in, rows of the adapted tensor out.

LoRA (Hu et al. 2021, arXiv:2106.09685): W + s B A.
DoRA (Liu et al. 2024, arXiv:2402.09353): m (W + s B A) / |W + s B A|, row by row.
OFT (Qiu et al. 2023, arXiv:2306.07280): W R^T with R block-diagonal and orthogonal.

Computed in the type of the rows that are given; all factors are held in it, W never as a whole.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from momacli.adapters.config import Oft
from momacli.adapters.layout import BiasStep, LowRank, Rotation
from momacli.methods._oft import oft_rotations, rotate_inputs, skew_blocks

Rows = Callable[[Tensor, int], Tensor]
"""Takes rows [n, columns] of the base and the number of the first, returns them adapted."""

Read = Callable[[str], Tensor]


def rows_of(
    change: LowRank | BiasStep | Rotation,
    read: Read,
    whole: Callable[[], Iterator[tuple[int, Tensor]]],
    dtype: torch.dtype,
) -> Rows:
    """Make ready what a change needs of its adapter.

    read: an adapter's tensor.
    whole: all rows of the base's tensor, in parts with the number of the first.
    """
    if isinstance(change, LowRank):
        step = _low_rank(change, read, dtype)
        if change.magnitude is None:
            return step
        magnitude = read(change.magnitude).to(dtype).reshape(-1)
        if not change.turned:
            return _at_length(step, magnitude)
        return _columns_at_length(step, magnitude, whole)
    if isinstance(change, BiasStep):
        bias = (change.scaling * read(change.bias).to(dtype)).reshape(-1, 1)
        return lambda rows, first: rows + bias[first : first + len(rows)]
    return rotating(generators(change, read), change)


def _low_rank(change: LowRank, read: Read, dtype: torch.dtype) -> Rows:
    a, b = read(change.a).to(dtype).flatten(1), read(change.b).to(dtype).flatten(1)
    left, right = (a.mT, b.mT) if change.turned else (b, a)
    left = change.scaling * left
    return lambda rows, first: torch.addmm(rows, left[first : first + len(rows)], right)


def _at_length(step: Rows, magnitude: Tensor) -> Rows:
    """Give every row, which is one output's, its length."""

    def rows_at_length(rows: Tensor, first: int) -> Tensor:
        moved = step(rows, first)
        lengths = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        scaled: Tensor = magnitude[first : first + len(rows), None] / lengths * moved
        return scaled

    return rows_at_length


def _columns_at_length(
    step: Rows, magnitude: Tensor, whole: Callable[[], Iterator[tuple[int, Tensor]]]
) -> Rows:
    """Give every column its length, which takes a look at all rows first."""
    squares = torch.zeros(len(magnitude), dtype=torch.float64)
    for first, rows in whole():
        squares += step(rows, first).double().square().sum(dim=0)
    factor = (magnitude.double() / squares.sqrt()).to(magnitude.dtype)
    return lambda rows, first: factor * step(rows, first)


def generators(change: Rotation, read: Read) -> Tensor:
    """The entries of the skew-symmetric blocks Q [blocks, b (b - 1) / 2], in float64.

    Those of constrained OFT are drawn back to its bound, as PEFT does on every use.
    """
    entries = read(change.entries).double()
    if change.settings.constraint is None:
        return entries
    bound = change.settings.constraint / len(entries) ** 0.5
    lengths = 2**0.5 * torch.linalg.vector_norm(entries, dim=1, keepdim=True)
    return torch.where(lengths <= bound, entries, bound * entries / lengths)


def rotating(entries: Tensor, change: Rotation) -> Rows:
    """Turn rows by the rotations of these generators, in the way of `change`."""
    rotations = rotations_of(entries, change.settings)
    if change.embedding:
        rotations = rotations.mT

    def rotated(rows: Tensor, _: int) -> Tensor:
        return rotate_inputs(rows, rotations.to(rows.dtype))

    return rotated


def rotations_of(entries: Tensor, oft: Oft) -> Tensor:
    """The blocks of R [blocks, b, b]."""
    return oft_rotations(
        skew_blocks(entries),
        use_cayley_neumann=oft.use_cayley_neumann,
        num_cayley_neumann_terms=oft.num_cayley_neumann_terms,
        last_term_doubled=oft.last_term_doubled,
    )
