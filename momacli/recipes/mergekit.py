"""mergekit's YAML configurations, read into steps of moma's own methods.

What a configuration leaves to the names of tensors (filters, gradients over layers, ranges of
layers) is resolved here, from headers alone, as mergekit 0.1 resolves it.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.header import MERGEABLE_DTYPES, TensorEntry
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import UsageError
from momacli.recipes.computed import StackedCheckpoint, layer_list
from momacli.recipes.layers import layer_lists
from momacli.recipes.mergekit_methods import METHODS, PARAMETERS
from momacli.recipes.mergekit_models import find_model, model_name
from momacli.recipes.mergekit_slices import Place, Places, Slice, Source, own_name
from momacli.recipes.mergekit_steps import Kind, TensorValues, translated
from momacli.recipes.mergekit_values import Settings, check_setting, evaluate
from momacli.recipes.steps import File, Layers, MergeRecipe, Stack
from momacli.recipes.yaml_file import read_yaml

_WHOLE = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "modules", "name",
)  # fmt: skip
_MODEL = ("model", "parameters")
_SOURCE = ("model", "layer_range", "parameters")
_SLICE = ("sources", "base_model", "residual_weight", "parameters")


def read_mergekit(path: Path) -> MergeRecipe:
    """Read a mergekit configuration of a supported method.

    Models are looked for beside the configuration, then in the folder this runs in, then in
    the cache of the hub.

    Raises UsageError for what is misspelt or not supported, CheckpointError for models that
    are not on this disk, ConflictError for layers that do not fit.
    """
    content = read_yaml(path)
    where = shown_path(path)
    _refuse_unknown(content, _WHOLE, where)
    _refuse_unsupported(content, where)
    method = content.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(
            f"{where}: merge_method {shown(str(method))} is not supported",
            hint=f"moma merges mergekit's {known}",
        )
    with ExitStack() as stack:
        reader = _Reader(path, content, METHODS[method], stack)
        return reader.recipe()


class _Reader:
    """Reads one configuration; holds the headers of its models."""

    def __init__(self, path: Path, content: Mapping[str, Any], kind: Kind, stack: ExitStack):
        self._where = shown_path(path)
        self._folder = path.parent
        self._content = content
        self._kind = kind
        self._stack = stack
        self._opened: dict[Path, Checkpoint] = {}
        self._ignored: set[str] = set()
        base = content.get("base_model")
        self._base = None if base is None else self._path(base)
        self._settings = self._parameters(content, self._where)

    def recipe(self) -> MergeRecipe:
        slices = self._slices()
        self._check_shape(slices)
        notes = [
            f"{self._where}: {self._kind.name} takes no {name}; mergekit ignores it too"
            for name in sorted(self._ignored)
        ]
        base = None
        if slices[0].base is not None:
            base = self._stacked([item.base for item in slices if item.base is not None])
        count = len(slices[0].experts)
        experts = [self._stacked([item.experts[j] for item in slices]) for j in range(count)]
        names = _names([source.model for source in slices[0].experts])
        values = self._values(slices, names, (base or experts[0])[1])
        steps, more = translated(
            self._kind,
            None if base is None else base[0],
            dict(zip(names, (source for source, _ in experts), strict=True)),
            values,
            dtype=self._text("out_dtype") or self._text("dtype"),
        )
        return MergeRecipe(tuple(steps), as_one_model=True, notes=(*notes, *more))

    def _text(self, key: str) -> str | None:
        value = self._content.get(key)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{self._where}: {key}: expected a text, found {value!r}")
        return value

    # models and layers

    def _path(self, reference: Any) -> Path:
        return find_model(reference, self._folder, self._where)

    def _open(self, path: Path) -> Checkpoint:
        if path not in self._opened:
            self._opened[path] = self._stack.enter_context(Checkpoint.open(path))
        return self._opened[path]

    def _slices(self) -> list[Slice]:
        given = [key for key in ("models", "slices") if self._content.get(key)]
        if len(given) != 1:
            raise UsageError(f"{self._where}: expected exactly one of models and slices")
        if given == ["models"]:
            return [self._slice_of_models(self._tables("models"))]
        return [
            self._slice(table, f"{self._where}: slice {number}")
            for number, table in enumerate(self._tables("slices"), 1)
        ]

    def _tables(self, key: str) -> list[Mapping[str, Any]]:
        value = self._content[key]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UsageError(f"{self._where}: {key}: expected a list of tables")
        return value

    def _slice_of_models(self, tables: Sequence[Mapping[str, Any]]) -> Slice:
        sources = []
        for number, table in enumerate(tables, 1):
            place = f"{self._where}: model {number}"
            _refuse_unknown(table, _MODEL, place)
            sources.append(self._whole(self._path(table.get("model")), table, place))
        if self._base is not None and self._base not in [item.model for item in sources]:
            sources.append(self._whole(self._base, {}, self._where))
        return self._split(sources, self._base, {})

    def _whole(self, model: Path, table: Mapping[str, Any], place: str) -> Source:
        lists = layer_lists(self._open(model).entries)
        count = next(iter(lists.values()), 0)
        return Source(model, 0, count, self._parameters(table, place))

    def _slice(self, table: Mapping[str, Any], place: str) -> Slice:
        _refuse_unknown(table, _SLICE, place)
        if table.get("residual_weight") is not None:
            raise UsageError(f"{place}: residual_weight is not supported")
        given = table.get("sources")
        if not isinstance(given, list) or not given:
            raise UsageError(f"{place}: sources: expected a list of tables")
        sources = [self._source(item, place) for item in given]
        lengths = {item.stop - item.start for item in sources}
        if len(lengths) > 1:
            raise UsageError(f"{place}: its sources have different numbers of layers")
        own = table.get("base_model")
        base = self._base if own is None else self._path(own)
        return self._split(sources, base, self._parameters(table, place))

    def _source(self, table: Any, place: str) -> Source:
        if not isinstance(table, dict):
            raise UsageError(f"{place}: sources: expected a list of tables")
        _refuse_unknown(table, _SOURCE, place)
        model = self._path(table.get("model"))
        limits = table.get("layer_range")
        if (
            not isinstance(limits, list)
            or [type(item) for item in limits] != [int, int]
            or not 0 <= limits[0] < limits[1]
        ):
            raise UsageError(
                f"{place}: layer_range: expected [first, after the last], found {limits!r}"
            )
        layer_list(self._open(model), limits[1])
        return Source(model, limits[0], limits[1], self._parameters(table, place))

    def _split(self, sources: Sequence[Source], base: Path | None, settings: Settings) -> Slice:
        """Tell the base from the experts, where the method has a base at all."""
        found = None
        if self._kind.base != "none":
            found = next((item for item in sources if item.model == base), None)
        experts = tuple(item for item in sources if item is not found)
        return Slice(experts, found, settings)

    def _check_shape(self, slices: Sequence[Slice]) -> None:
        kind = self._kind
        for item in slices:
            if kind.base == "required" and item.base is None:
                raise UsageError(
                    f"{self._where}: {kind.name} needs a base_model",
                    hint="in a configuration of slices it must be one of the sources of each",
                )
            if not kind.least <= len(item.experts) <= kind.most:
                raise UsageError(
                    f"{self._where}: {kind.name} takes {kind.expected}, "
                    f"found {len(item.experts)} besides the base"
                )
        if len({(len(item.experts), item.base is None) for item in slices}) > 1:
            raise UsageError(
                f"{self._where}: slices of different numbers of models are not supported"
            )

    def _stacked(self, pieces: Sequence[Source]) -> tuple[File | Stack, Checkpoint]:
        """One model made of a source of each slice; a file where it is all of one model."""
        first = pieces[0]
        checkpoint = self._open(first.model)
        counts = layer_lists(checkpoint.entries)
        if len(pieces) == 1 and (first.start, first.stop) == (0, next(iter(counts.values()), 0)):
            return File(first.model), checkpoint
        stack = Stack(tuple(Layers(File(p.model), p.start, p.stop) for p in pieces))
        opened = [(self._open(piece.model), piece.start, piece.stop) for piece in pieces]
        return stack, StackedCheckpoint(model_name(first.model), opened, None)

    # parameters

    def _parameters(self, table: Mapping[str, Any], place: str) -> Settings:
        """The parameters of a table. Raises UsageError for what no method of mergekit has."""
        value = table.get("parameters")
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise UsageError(f"{place}: parameters: expected a table, found {value!r}")
        _refuse_unknown(value, PARAMETERS, f"{place}: parameters")
        for name, setting in value.items():
            check_setting(setting, f"{place}: parameters: {name}")
        self._ignored |= {name for name in value if name not in self._kind.known}
        return value

    def _values(
        self, slices: Sequence[Slice], names: Sequence[str], output: Checkpoint
    ) -> dict[str, TensorValues]:
        """What the configuration says of each tensor of the output."""
        places = Places(slices, output)
        return {
            key: self._tensor(key, entry, places.of(key), names)
            for key, entry in output.entries.items()
            if entry.dtype in MERGEABLE_DTYPES
        }

    def _tensor(
        self, key: str, entry: TensorEntry, place: Place, names: Sequence[str]
    ) -> TensorValues:
        common = (place.slice.settings, self._settings)
        shared = {
            name: evaluate(
                name, parameter, common, tensor=key, t=place.t, place=f"{self._where}: {name}"
            )
            for name, parameter in self._kind.shared.items()
        }
        experts = {}
        for task, source in zip(names, place.slice.experts, strict=True):
            own = own_name(key, source, place)
            experts[task] = {
                name: evaluate(
                    name,
                    parameter,
                    (source.settings, *common),
                    tensor=own,
                    t=place.t,
                    place=f"{self._where}: {name} of {task}",
                )
                for name, parameter in self._kind.per_expert.items()
            }
        return TensorValues(entry.elements, shared, experts)


def _names(models: Sequence[Path]) -> list[str]:
    """Names for the experts: those of their folders, numbered where they are the same."""
    seen: Counter[str] = Counter()
    names = []
    for name in map(model_name, models):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _refuse_unsupported(content: Mapping[str, Any], where: str) -> None:
    if content.get("modules"):
        raise UsageError(f"{where}: modules is not supported, only models and slices")
    if content.get("chat_template") is not None:
        raise UsageError(
            f"{where}: chat_template is not supported: the base's tokenizer files are copied",
            hint="leave it out and set the template in the output's tokenizer_config.json",
        )
    tokenizer = content.get("tokenizer")
    source = content.get("tokenizer_source")
    if isinstance(tokenizer, dict) and set(tokenizer) <= {"source"}:
        source = tokenizer.get("source")
    elif tokenizer is not None:
        raise UsageError(f"{where}: tokenizer: only its source is supported, and only base")
    if source not in (None, "base", content.get("base_model")):
        raise UsageError(
            f"{where}: a tokenizer from {shown(str(source))} is not supported, only from the base"
        )


def _refuse_unknown(content: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may have: {', '.join(known)}"
            raise UsageError(f"{place}: unknown key {shown(str(key))}", hint=hint)
