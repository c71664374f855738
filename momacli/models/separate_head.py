"""Networks without a head of their own: it is a linear layer in tensors beside theirs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from momacli.checkpoint.header import TensorEntry
from momacli.errors import ModelError
from momacli.models.classification import Network, read_head
from momacli.models.interface import Batch, Head
from momacli.shapes import Float


class SeparateHead(Network, ABC):
    """An encoder and a linear head; tensors go by their checkpoint names."""

    head_name: str
    missing_hint = "make one with moma head"
    misfit_hint = "is it the head of another model?"

    def __init__(
        self,
        module: nn.Module,
        entries: Mapping[str, TensorEntry],
        heads: Collection[str],
        device: torch.device | str = "cpu",
    ):
        """heads: names of the head's tensors."""
        super().__init__(module, entries, device)
        self.head_tensors = tuple(heads)
        self._heads = frozenset(heads)
        self._head: Head | None = None

    def load(self, read: Callable[[str], Tensor], keys: Iterable[str], *, source: str) -> None:
        """Replace all weights, and keep the head for `logits`."""
        keys = list(keys)
        super().load(read, [key for key in keys if key not in self._heads], source=source)
        self._head = self.head(read, keys)

    def find_head(self, batch: Batch) -> None:
        """Check that the head fits the features. Raises ModelError."""
        with torch.no_grad():
            self.logits(batch)

    def head(self, read: Callable[[str], Tensor], keys: Iterable[str]) -> Head:
        """Read a task's head, in float32."""
        plain = read_head(lambda key: read(key).to(self.device), keys, self.head_name)
        return Head(plain.weight, plain.bias, before=self.before())

    def before(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to features before the head; None where nothing is."""
        return None

    @abstractmethod
    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the raw features of a batch."""

    def logits(self, batch: Batch) -> Float[Tensor, "N C"]:
        """Return the head's logits."""
        return self.answer(batch)[0]

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N d"]]:
        """Return the head's logits, and the raw features they were made of."""
        if self._head is None:
            raise ModelError("there is no head", hint=self.missing_hint)
        features = self.features(batch).float()
        expected, found = self._head.weight.shape[1], features.shape[1]
        if expected != found:
            raise ModelError(
                f"the head takes features of {expected} numbers, the encoder gives {found}",
                hint=self.misfit_hint,
            )
        return self._head(features), features


def unit_norm(features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Return z/|z|."""
    return torch.nn.functional.normalize(features, dim=-1)
