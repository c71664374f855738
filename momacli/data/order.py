"""The order in which samples are seen, by a seed."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def seed_of(text: str) -> int:
    """A seed for torch's generators that any text gives, 0 to 2^63 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_of(seed: int, task: str) -> torch.Generator:
    """Return a task's own source of random numbers, which no other task has a part in."""
    return torch.Generator().manual_seed(seed_of(f"{seed}/{task}"))


def shuffled(count: int, size: int, *, seed: int, task: str) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, by the generator of the task alone."""
    return in_rounds(count, size, generator_of(seed, task))


def in_rounds(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, every one once before any comes twice.

    A batch is never smaller than `size`, unless there are fewer samples; what is left of a
    round is skipped.
    """
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
