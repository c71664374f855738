"""Which tensors of a pickle are the model's, and under what names.

A model is a table of tensors (a state_dict), or a whole module, whose parameters and buffers
are found in the attributes that every torch module keeps them in, whatever its class was. It
may lie within tables that hold more: `{"epoch": 3, "state_dict": {...}}`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import MAX_HEADER_BYTES
from momacli.pickles.arrays import array_view
from momacli.pickles.values import Global, Instance, TensorView, Unsupported
from momacli.pickles.window import MalformedError

ENTRIES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
"""Where a model is looked for first in a table that holds more."""

_OF_EVERY_MODULE = ("training", "in_features", "out_features")
"""Attributes that torch's own modules have; those that begin with an underscore are, too."""

_DEEPEST = 200
_MOST_VALUES = 20_000_000
_LONGEST_NOTE = 256
_ENTRY = 60
"""Bytes that a tensor takes in the header of a safetensors file besides its name."""


class AmbiguousError(MalformedError):
    """There are several models, or none where one was said to be."""

    def __init__(self, why: str, entries: list[str]):
        super().__init__(why)
        self.entries = entries


@dataclass(frozen=True)
class Found:
    """The tensors of a model by name, and what else was there."""

    tensors: Mapping[str, TensorView]
    tied: Mapping[str, str]  # a name -> the name that the same elements have in `tensors`
    unsupported: Mapping[str, str]  # tensors that a safetensors file cannot hold: what they are
    kept: Mapping[str, str | int | float | bool]  # short entries that are no tensors
    left_out: tuple[str, ...]  # the other entries, and what they are
    kind: Global | None  # the class of a whole module
    entry: str  # where it was found: "state_dict", "model.state_dict"; "" at the top


def find_model(value: object, entry: str | None = None) -> Found:
    """Find the tensors of the model in what was pickled.

    entry: the names of the tables that lead to it, joined by dots.

    Raises AmbiguousError, with the entries there are, if there are several or none.
    """
    path: list[str] = []
    search = _Search()
    wanted = entry.split(".") if entry else []
    while wanted or not _is_model(value):
        table = _table(value)
        inner = {name: item for name, item in table.items() if search.finds_model_in(item)}
        name = wanted.pop(0) if wanted else _chosen(inner, path)
        if name not in table:
            where = f" in {shown('.'.join(path))}" if path else ""
            raise AmbiguousError(f"there is no entry {shown(name)}{where}", sorted(inner))
        value = table[name]
        path.append(name)
    return _model(value, ".".join(path))


def _chosen(inner: Mapping[str, object], path: list[str]) -> str:
    """The entry to look in, where none was said. Raises AmbiguousError."""
    if len(path) >= _DEEPEST or not inner:
        raise AmbiguousError("it holds no tensors", [])
    known = [name for name in ENTRIES if name in inner]
    if known or len(inner) == 1:
        return [*known, *inner][0]
    raise AmbiguousError(f"it holds {len(inner)} models", sorted(inner))


def _is_model(value: object) -> bool:
    return (
        _tensor(value) is not None
        or _is_module(value)
        or any(_tensor(item) is not None for item in _table(value).values())
    )


def _tensor(value: object) -> TensorView | Unsupported | None:
    """The tensor that a value is, if it is one."""
    return value if isinstance(value, TensorView | Unsupported) else array_view(value)


class _Search:
    """Looks for models at any depth; values that are there many times are not searched again."""

    def __init__(self, *, attributes: bool = False):
        """attributes: whether to look into those of objects, too, and what they were made of."""
        self._attributes = attributes
        self._without: set[int] = set()
        self._with: set[int] = set()
        self._left = _MOST_VALUES

    def finds_model_in(self, value: object) -> bool:
        """Whether there is a model in a value. Raises MalformedError where the work never ends."""
        if id(value) in self._with or id(value) in self._without:
            return id(value) in self._with
        pending, seen = [value], {id(value)}
        while pending:
            item = pending.pop()
            if _is_model(item):
                self._with.add(id(value))
                return True
            inside = list(self._inside(item))
            self._left -= 1 + len(inside)
            if self._left < 0:
                raise MalformedError(f"it has more than {_MOST_VALUES} values to look through")
            for inner in inside:
                if id(inner) not in seen and id(inner) not in self._without:
                    seen.add(id(inner))
                    if isinstance(inner, dict | list | tuple | Instance | TensorView | Unsupported):
                        pending.append(inner)
        self._without |= seen
        return False

    def _inside(self, value: object) -> Iterator[object]:
        yield from _table(value).values()
        if self._attributes and isinstance(value, Instance):
            yield value.arguments
            yield value.state


def _is_module(value: object) -> bool:
    return isinstance(value, Instance) and "_parameters" in value.attributes


def _table(value: object) -> Mapping[str, object]:
    """The entries of a dict, a list, or what stands for a kind of either; else none."""
    if isinstance(value, Instance):
        value = value.items if value.entries is None else value.entries
    if isinstance(value, dict):
        found: dict[str, object] = {}
        for key, item in value.items():
            if isinstance(key, str | int) and str(key) not in found:
                found[str(key)] = item
            elif _tensor(item) is not None:
                raise MalformedError("a tensor in it has a name that is no text, or another's")
        return found
    if isinstance(value, list | tuple):
        return {str(number): item for number, item in enumerate(value)}
    return {}


def _model(value: object, entry: str) -> Found:
    if _tensor(value) is not None:
        value = {"tensor": value}
    whole = isinstance(value, Instance) and _is_module(value)
    pairs = list(_tensors_of(value) if whole else _table(value).items())
    tensors: dict[str, TensorView] = {}
    tied: dict[str, str] = {}
    unsupported: dict[str, str] = {}
    places: dict[object, str] = {}
    for name, found in pairs:
        item = _tensor(found)
        if isinstance(item, Unsupported):
            unsupported[name] = item.what
        elif isinstance(item, TensorView):
            first = places.setdefault(item.place, name)
            if first == name or math.prod(item.shape) == 0:
                tensors[name] = item
            else:
                tied[name] = first
    rest = value.attributes if isinstance(value, Instance) and whole else _table(value)
    kept, left_out = _others(rest, whole=whole)
    kind = value.kind if isinstance(value, Instance) else None
    return Found(tensors, tied, unsupported, kept, tuple(left_out), kind, entry)


def _tensors_of(module: object) -> Iterator[tuple[str, object]]:
    """The parameters and persistent buffers of a module, named as its state_dict has them."""
    pending: list[tuple[str, object, int]] = [("", module, 0)]
    left = MAX_HEADER_BYTES  # a module that is there many times multiplies names
    while pending:
        prefix, item, depth = pending.pop()
        if depth > _DEEPEST or not isinstance(item, Instance):
            raise MalformedError("a module in it is none, or its modules are nested too deeply")
        attributes = item.attributes
        passing = _table(attributes.get("_non_persistent_buffers_set"))
        hidden = {*passing, *passing.values()}
        left -= len(passing)
        for group in ("_parameters", "_buffers"):
            for name, value in _table(attributes.get(group)).items():
                left -= len(prefix) + len(name) + _ENTRY
                if left < 0:
                    raise MalformedError("the names of its tensors are longer than a file can hold")
                if value is not None and not (group == "_buffers" and name in hidden):
                    if _tensor(value) is None:
                        value = Unsupported("not known: a tensor of a class of its own")
                    yield prefix + name, value
        for name, value in reversed(list(_table(attributes.get("_modules")).items())):
            left -= len(prefix) + len(name) + _ENTRY
            if value is not None and left >= 0:
                pending.append((f"{prefix}{name}.", value, depth + 1))
        if left < 0:
            raise MalformedError("the names of its modules are longer than a file can hold")


def _others(
    table: Mapping[object, object] | Mapping[str, object], *, whole: bool
) -> tuple[dict[str, str | int | float | bool], list[str]]:
    """What is beside the tensors: short texts and numbers, and what else there is.

    Of a whole module only what its author gave it: not what every torch module has.
    """
    kept: dict[str, str | int | float | bool] = {}
    left_out = []
    search = _Search(attributes=True)
    for key, value in table.items():
        name = str(key)
        if whole and (name.startswith("_") or name in _OF_EVERY_MODULE):
            continue
        if value is None or _tensor(value) is not None:
            continue
        if _is_short(value):
            kept[name] = value
        else:
            left_out.append(f"{shown(name)}: {_described(value, search)}")
    return kept, left_out


def _is_short(value: object) -> TypeGuard[str | int | float]:
    if isinstance(value, str):
        return len(value) <= _LONGEST_NOTE
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _described(value: object, search: _Search) -> str:
    """What a value is, in a word or two."""
    kinds = [(dict, "a table"), (list, "a list"), (tuple, "a list"), (str, "a text")]
    what = next((what for kind, what in kinds if isinstance(value, kind)), "a value")
    if isinstance(value, Instance):
        what = shown(str(value.kind)) if value.kind else "the result of a call"
    elif isinstance(value, Global):
        what = shown(str(value))
    return f"{what} with tensors" if search.finds_model_in(value) else what
