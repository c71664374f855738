"""Several processes that write one output together, as torchrun starts them.

Each computes the tensors of its own share and writes them to their places in files that the
first one has made; so the bytes are those that a single process would write.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from momacli.checkpoint.writer import TensorSpec

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """One process among those that work together."""

    number: int  # of this one, from 0; the first makes the files and reports
    count: int

    @classmethod
    def apart(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """What torchrun says of this process, which has not met the others; alone without it."""
        count = int(environment.get("WORLD_SIZE", "1"))
        return cls(int(environment.get("RANK", "0")) if count > 1 else 0, count)

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> "Ranks":
        """The same, once all have met.

        From then on transformers saves nothing in any process but the first.
        """
        ranks = cls.apart(environment)
        if ranks.count > 1:
            import torch.distributed

            if not torch.distributed.is_initialized():
                both = "cpu:gloo,cuda:nccl"  # each for the tensors that are there
                torch.distributed.init_process_group(both if torch.cuda.is_available() else "gloo")
        return ranks

    def share(self, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
        """The consecutive tensors that this process computes, about as many bytes as others."""
        total = sum(spec.nbytes for spec in specs)
        own, before = [], 0
        for spec in specs:
            middle = before + spec.nbytes / 2
            if min(self.count - 1, int(self.count * middle / max(1, total))) == self.number:
                own.append(spec)
            before += spec.nbytes
        return own

    def from_first(self, item: _Item | None) -> _Item:
        """Hand what the first process has to all of them."""
        if self.count > 1:
            import torch.distributed

            box = [item]
            torch.distributed.broadcast_object_list(box, src=0)
            item = box[0]
        assert item is not None
        return item

    def all_of(self, item: _Item) -> list[_Item]:
        """What each process has, in their order, once all have come here."""
        if self.count == 1:
            return [item]
        import torch.distributed

        items: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(items, item)
        return items
