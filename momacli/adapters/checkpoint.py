"""A base with an adapter in it, as a checkpoint that is nowhere on disk."""

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from momacli.adapters.config import AdapterConfig, config_file, read_adapter_config
from momacli.adapters.description import adapted_description, is_other_class
from momacli.adapters.layout import (
    BiasStep,
    Layout,
    LowRank,
    Named,
    Replacement,
    Rotation,
    lay_out,
    named_parts,
)
from momacli.checkpoint.arrays import as_array, as_tensor, fill
from momacli.checkpoint.description import Description
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import DTYPE_BITS, TensorEntry
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.renaming import RenamedCheckpoint, common_prefix
from momacli.errors import ConflictError
from momacli.models.device import one_thread
from momacli.recipes.computed import ComputedCheckpoint, OriginCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from momacli.adapters.changes import Rows
    from momacli.checkpoint.arrays import Array

_TOWERS = 16
"""Parts of a base that are tried, where an adapter does not say which of them it is for."""

_CHUNK = 1 << 18
"""Elements that are adapted at a time: the same rows together however they are asked for."""


class AdaptedCheckpoint(ComputedCheckpoint):
    """What an adapter makes of its base, tensor by tensor and row by row.

    `read` rounds to the type of the base; `read_range` gives float32 or better, so that what
    is merged further is rounded once, at the end.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapter: Checkpoint,
        config: AdapterConfig,
        layout: Layout,
        description: Description | None,
        wanted: Collection[str],
    ):
        """wanted: of the base's tensors, those that the adapted model has."""
        super().__init__(adapter.name, [adapter], description)
        self.path = adapter.path
        self.base = base
        self.adapter = adapter
        self.config = config
        self.layout = layout
        self._wanted = wanted
        self._rows: tuple[str, Rows] | None = None
        self._chunk: tuple[str, int, Array] | None = None

    @cached_property
    def is_folder(self) -> bool:
        """Whether the base, whose form the adapted model has, is a folder."""
        return self.base.is_folder

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The base's, with the shapes of what replaces them, and the adapter's own."""
        found = {}
        for key, entry in self.base.entries.items():
            if key not in self._wanted:
                continue
            change = self.layout.changes.get(key)
            if isinstance(change, Replacement):
                shape = self.adapter.entries[change.values].shape
                found[key] = TensorEntry(key, entry.dtype, shape, 0, _bytes_of(entry, shape))
            else:
                found[key] = entry
        for key, own in self.layout.own.items():
            entry = self.adapter.entries[own]
            found[key] = TensorEntry(key, entry.dtype, entry.shape, entry.start, entry.stop)
        return found

    def sha256(self) -> dict[str, str]:
        """SHA-256 of the adapter's files."""
        return self.adapter.sha256()

    @property
    def file_names(self) -> list[str]:
        """The adapter's files."""
        return self.adapter.file_names

    def read(self, key: str) -> "Tensor":
        """Compute one tensor and round it to its type."""
        from momacli.checkpoint.dtypes import torch_dtype

        if key in self.layout.own:
            return self.adapter.read(self.layout.own[key])
        if key not in self.layout.changes:
            return self.base.read(key)
        entry = self.entries[key]
        values = self.read_range(key, 0, entry.elements)
        return values.to(torch_dtype(entry.dtype, key)).reshape(entry.shape)

    def read_range(self, key: str, start: int, stop: int) -> "Tensor":
        """Compute elements start to stop of one tensor, in float32 or better."""
        if key in self.layout.own:
            return self.adapter.read_range(self.layout.own[key], start, stop)
        change = self.layout.changes.get(key)
        if change is None:
            return self.base.read_range(key, start, stop)
        if isinstance(change, Replacement):
            values = self.adapter.read_range(change.values, start, stop)
            return values.to(self._dtype(key)) if values.is_floating_point() else values
        result = np.empty(stop - start, dtype=self._kind(key))
        self._fill(result, key, start)
        return as_tensor(result)

    def read_to(self, out: "Array", key: str, start: int) -> None:
        """Fill `out`, flat, with the elements from `start` on."""
        if self.is_the_base_s(key):
            self.base.read_to(out, key, start)
        elif isinstance(self.layout.changes.get(key), LowRank | BiasStep | Rotation):
            self._fill(out, key, start)
        else:
            super().read_to(out, key, start)

    def is_the_base_s(self, key: str) -> bool:
        """Whether a tensor is as the base has it."""
        return key not in self.layout.changes and key not in self.layout.own

    def _fill(self, out: "Array", key: str, start: int) -> None:
        columns = _columns(self.entries[key])
        size = max(1, _CHUNK // columns) * columns
        stop = start + out.size
        for number in range(start // size, -(-stop // size)):
            chunk, offset = self._adapted(key, number, size), number * size
            low, high = max(start, offset), min(stop, offset + size)
            fill(out[low - start : high - start], chunk[low - offset : high - offset])

    def _adapted(self, key: str, number: int, size: int) -> "Array":
        """The rows of one chunk, flat; the last one is kept, as blocks may end within it."""
        if self._chunk is not None and self._chunk[:2] == (key, number):
            return self._chunk[2]
        with one_thread():
            if self._rows is None or self._rows[0] != key:
                self._rows = None  # its memory goes before the next tensor's comes
                self._rows = (key, self._ready(key))
            rows, first = self._base_rows(key, number, size)
            chunk = as_array(self._rows[1](rows, first)).reshape(-1)
        self._chunk = (key, number, chunk)
        return chunk

    def _ready(self, key: str) -> "Rows":
        from momacli.adapters.changes import rows_of

        change = self.layout.changes[key]
        assert not isinstance(change, Replacement)
        return rows_of(change, self.adapter.read, lambda: self._all_rows(key), self._dtype(key))

    def _all_rows(self, key: str) -> "Iterator[tuple[int, Tensor]]":
        entry = self.entries[key]
        size = max(1, _CHUNK // _columns(entry)) * _columns(entry)
        for number in range(-(-entry.elements // size)):
            rows, first = self._base_rows(key, number, size)
            yield first, rows

    def _base_rows(self, key: str, number: int, size: int) -> "tuple[Tensor, int]":
        entry = self.entries[key]
        start, columns = number * size, _columns(entry)
        values = np.empty(min(entry.elements - start, size), dtype=self._kind(key))
        self.base.read_to(values, key, start)
        return as_tensor(values).reshape(-1, columns), start // columns

    def _dtype(self, key: str) -> "torch.dtype":
        import torch

        return torch.float64 if self.entries[key].dtype == "F64" else torch.float32

    def _kind(self, key: str) -> type[np.floating[Any]]:
        return np.float64 if self.entries[key].dtype == "F64" else np.float32


TensorsOf = Callable[[Mapping[str, Any], Collection[str]], Set[str]]
"""The names of a model's tensors by its config; of tied ones those that are among the given."""

StoredAs = Callable[[Mapping[str, Any]], Mapping[str, str]]
"""How a file calls what a built model of a config has, by its name there; they may differ."""


def with_adapter(
    base: Checkpoint,
    adapter: Checkpoint,
    description: Description | None = None,
    tensors_of: TensorsOf | None = None,
    stored_as: StoredAs | None = None,
) -> AdaptedCheckpoint:
    """Put an adapter in its base; nothing is computed before it is read.

    Names that differ by one prefix are matched: the longer ones are those of the result.

    description: of the base.
    tensors_of: finds what to take of a base that is no classifier, for an adapter trained in
        one; without it, all that the base has.
    stored_as: finds the names in files, where an adapter was trained in a model that has others.

    Raises ConflictError listing every tensor and option that does not fit, CheckpointError if
    the adapter's config is damaged.
    """
    config = read_adapter_config(config_file(adapter))
    adapted = adapted_description(description, config, adapter)
    found = named_parts(adapter.entries)
    matched, named = _same_names(base, found, config, adapter)
    if stored_as and adapted and not _is_in(named, matched):
        found = found.renamed(stored_as(adapted.config))
        matched, named = _same_names(base, found, config, adapter)
    base = matched
    layout = lay_out(named, config, adapter.entries, base.entries)
    wanted: Set[str] = base.entries.keys()
    problems = list(layout.problems)
    if isinstance(base, OriginCheckpoint):
        problems.append("it changes a base, and this merge has none")
    if tensors_of and adapted and is_other_class(description, adapted) and not problems:
        have = base.entries.keys() | layout.own.keys()
        wanted = tensors_of(adapted.config, have)
        problems += [f"{key}   neither in base nor adapter" for key in sorted(wanted - have)]
    if problems:
        raise ConflictError(
            f"the {config} {adapter.path} does not fit the base {base.path}",
            details=[f"{adapter.name}: {problem}" for problem in problems],
            hint=_hint(config),
        )
    return AdaptedCheckpoint(base, adapter, config, layout, adapted, wanted)


def _same_names(
    base: Checkpoint, named: Named, config: AdapterConfig, adapter: Checkpoint
) -> tuple[Checkpoint, Named]:
    """Both under the same names, if a prefix is all they differ by."""
    modules = [f"{module}.weight" for module in named.parts]
    prefix = common_prefix(modules or named.tensors, base.entries)
    if prefix.startswith("-") and not isinstance(base, ComputedCheckpoint):
        names = {key: prefix[1:] + key for key in base.entries}
        change = f"{shown(prefix[1:])!r} is put before the names of {len(names)} tensors"
        return RenamedCheckpoint(base, names, change), named
    if prefix.startswith("+"):
        return base, _under(prefix[1:], named, base)
    if modules and not _is_in(named, base):
        fitting = [
            inner
            for top in sorted({key.split(".")[0] for key in base.entries if "." in key})[:_TOWERS]
            if not lay_out(
                inner := _under(f"{top}.", named, base), config, adapter.entries, base.entries
            ).problems
        ]
        towers = [inner for inner in fitting if _is_of_tower(inner, config)]
        if len(towers or fitting) == 1:
            return base, (towers or fitting)[0]
    return base, named


def _is_in(named: Named, base: Checkpoint) -> bool:
    """Whether the base has any of the modules that an adapter is for."""
    return not named.parts or any(f"{module}.weight" in base.entries for module in named.parts)


def _under(prefix: str, named: Named, base: Checkpoint) -> Named:
    names = {key: prefix + key for key in named.tensors}
    return named.renamed({key: new for key, new in names.items() if new in base.entries})


def _is_of_tower(named: Named, config: AdapterConfig) -> bool:
    """Whether names lie in the tower that the adapter's class is of, as a CLIPVisionModel is."""
    tops = {module.split(".")[0] for module in named.parts}
    of = (config.base_class or "").lower()
    return any(kind in of and all(kind in top for top in tops) for kind in ("vision", "text"))


def _hint(config: AdapterConfig) -> str:
    trained_on = f"; it says it was trained on {config.base_name}" if config.base_name else ""
    return (
        f"give the model it was trained on with --base{trained_on}; or let PEFT make a whole "
        "model of it with merge_and_unload"
    )


def _columns(entry: TensorEntry) -> int:
    """How many elements a row has; a vector has rows of one."""
    return max(1, entry.elements // max(1, entry.shape[0])) if entry.shape else 1


def _bytes_of(entry: TensorEntry, shape: tuple[int, ...]) -> int:
    return prod(shape) * DTYPE_BITS[entry.dtype] // 8
