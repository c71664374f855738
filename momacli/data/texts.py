"""Texts as token ids: prepared once, padded batch by batch to the longest of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from momacli.data.tables import Table
from momacli.models.interface import Padding
from momacli.progress import Listener, Progress, ignore

_CHUNK = 1024  # texts tokenized together


class Tokenize(Protocol):
    """Texts, or pairs of them, to token ids by input name."""

    max_length: int
    padding: Padding

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return one entry a text: input name -> ids [length]."""
        ...


@dataclass(frozen=True)
class Texts:
    """Tokenized texts of one task, in the order they were read."""

    files: tuple[Path, ...]
    rows: Sequence[Mapping[str, Tensor]]
    padding: Padding
    preparation: Mapping[str, object]

    @property
    def views(self) -> int:
        """Of each text: itself alone."""
        return 1

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The texts of these numbers, padded to the longest of them."""
        rows = [self.rows[int(index)] for index in indices]
        alone = [{key: ids[None].long() for key, ids in row.items()} for row in rows]
        return dict(self.padding.together(alone))


def tokenize(
    table: Table,
    numbers: Sequence[int],
    prepare: Tokenize,
    *,
    preparation: Mapping[str, object],
    stage: str = "tokenizing",
    listener: Listener = ignore,
) -> Texts:
    """Tokenize the rows of these numbers."""
    rows: list[dict[str, Tensor]] = []
    for start in range(0, len(numbers), _CHUNK):
        part = numbers[start : start + _CHUNK]
        pairs = None if table.pairs is None else [table.pairs[number] for number in part]
        rows += prepare([table.texts[number] for number in part], pairs)
        listener(Progress(stage, len(rows), len(numbers), "texts"))
    known = dict(preparation) | {"max_length": prepare.max_length}
    return Texts(table.files, rows, prepare.padding, known)
