"""Write one model to as many files as its size asks for, with an index of what is where."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.weight_files import INDEX, SINGLE
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


class ShardedWriter:
    """The open files of one model; tensors may come in any order, each in consecutive parts."""

    def __init__(self, writers: Mapping[str, CheckpointWriter]):
        self._writers = writers  # by tensor

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Append values to a tensor, as a CheckpointWriter does."""
        self._writers[name].append(name, values)

    def replace(self, name: str, start: int, values: "Tensor | Array") -> None:
        """Put values in the place of appended ones, as a CheckpointWriter does."""
        self._writers[name].replace(name, start, values)

    def files(self) -> list[Path]:
        """Where the files are, while they are being written."""
        return list(dict.fromkeys(writer.path for writer in self._writers.values()))

    def leave_to_others(self, names: Iterable[str]) -> None:
        """Take these tensors for written: another process has put them in their places."""
        for name in names:
            self._writers[name].leave_to_others([name])

    def replace_metadata(self, metadata: Mapping[str, str]) -> None:
        """Replace these values of every file's metadata, by ones of the same length."""
        for writer in {id(item): item for item in self._writers.values()}.values():
            writer.replace_metadata(metadata)


@contextmanager
def sharded_writer(
    folder: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str], *, largest: int
) -> Iterator[ShardedWriter]:
    """Open a model's files in a folder: `model.safetensors`, or shards and their index.

    largest: bytes of the tensors of one file; a tensor beyond that has a file of its own.
    """
    groups = shards(specs, largest)
    if len(groups) == 1:
        names = [SINGLE]
    else:
        count = len(groups)
        names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
        table = {spec.name: n for n, group in zip(names, groups, strict=True) for spec in group}
        size = sum(spec.nbytes for spec in specs)
        content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    writers: dict[str, CheckpointWriter] = {}
    with ExitStack() as stack:
        for name, group in zip(names, groups, strict=True):
            writer = stack.enter_context(CheckpointWriter(folder / name, group, metadata))
            writers |= dict.fromkeys((spec.name for spec in group), writer)
        yield ShardedWriter(writers)


def shards(specs: Iterable[TensorSpec], largest: int) -> list[list[TensorSpec]]:
    """Split tensors, in their order, in groups of at most `largest` bytes; at least one group."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.nbytes
    return groups


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500 MB" or "2GiB". Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise UsageError(
            f"--max-shard-size: expected a size such as 5GB, found {shown(text)}",
            hint=f"units are {', '.join(u for u in _UNITS if u)}; KB, MB and GB are powers of 1000",
        )
    return size
