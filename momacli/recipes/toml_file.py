"""recipe.toml: everything the command line can say, rules for single tensors, chained steps."""

import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.naming import BASE_NAMES
from momacli.checkpoint.reader import task_name
from momacli.checkpoint.source import Source as InputFile
from momacli.errors import UsageError
from momacli.merging.catalog import find_card
from momacli.recipes.rules import Rule
from momacli.recipes.steps import File, MergeRecipe, Model, Result, Step

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 10_000_000

_SHARED = ("method", "base", "scope", "seed", "dtype", "exclude")
_STEP = ("name", *_SHARED, "inputs", "weights", "rules")
_WHOLE = ("output", "config", "heads", "vocab")
DEFAULT_METHOD = "task-arithmetic"


def read_toml(path: Path) -> MergeRecipe:
    """Read a recipe; paths in it are relative to the folder it is in.

    Raises CheckpointError if the file cannot be read, UsageError naming what is wrong in it.
    """
    content = _parse(path)
    where = shown_path(path)
    if "steps" in content:
        _refuse_unknown(content, (*_SHARED, *_WHOLE, "steps"), where)
        tables = _tables(content["steps"], f"{where}: steps")
        shared = {key: content[key] for key in _SHARED if key in content}
    else:
        tables = [{key: value for key, value in content.items() if key not in _WHOLE}]
        shared = {}
    steps: list[Step] = []
    for number, table in enumerate(tables, 1):
        place = f"{where}, step {number}" if "steps" in content else where
        reader = _StepReader(place, path.parent, {**shared, **table}, steps)
        steps.append(reader.step(last=number == len(tables)))
    _refuse_unused(steps, where)
    output, config = (_optional_path(content, key, path.parent, where) for key in _WHOLE[:2])
    heads = tuple(_texts(content.get("heads", ()), f"{where}: heads"))
    vocab = content.get("vocab")
    if vocab not in (None, "base", "min"):
        raise UsageError(f"{where}: vocab: expected base or min, found {vocab!r}")
    return MergeRecipe(tuple(steps), output, heads, config, vocab=vocab)


class _StepReader:
    """Reads the table of one step; `place` is what messages call it."""

    def __init__(self, place: str, folder: Path, table: Mapping[str, Any], earlier: Sequence[Step]):
        self._place = place
        self._folder = folder
        self._table = table
        self._earlier = {step.name for step in earlier}
        card = find_card(self._text("method", DEFAULT_METHOD))
        self._method = card.name
        self._options = {option.name for option in card.options}

    def step(self, *, last: bool) -> Step:
        name = self._text("name", "" if last else None)
        if name in self._earlier:
            raise UsageError(f"{self._place}: there are two steps named {shown(name)}")
        base, experts = self._models()
        weights = self._table.get("weights")
        names = [model.name for model in experts]
        seed = self._table.get("seed", 0)
        if type(seed) is not int:
            raise UsageError(f"{self._place}: seed: expected an integer, found {seed!r}")
        given = {key: value for key, value in self._table.items() if key not in _STEP}
        return Step(
            name=name,
            method=self._method,
            base=base,
            experts=tuple(experts),
            options=self._method_options(given, self._place),
            weights=None if weights is None else self._weights(weights, names, self._place),
            scope=self._text("scope", "") or None,
            seed=seed,
            dtype=self._text("dtype", "") or None,
            exclude=tuple(_texts(self._table.get("exclude", ()), f"{self._place}: exclude")),
            rules=tuple(self._rules(names)),
        )

    def _text(self, key: str, default: str | None) -> str:
        value = self._table.get(key, default)
        if not isinstance(value, str):
            found = "nothing" if value is None else repr(value)
            raise UsageError(f"{self._place}: {key}: expected a text, found {found}")
        return value

    def _models(self) -> tuple[Model, list[Model]]:
        """The base, which may be among the inputs by its name, and the experts."""
        given = self._table.get("inputs")
        if isinstance(given, dict):
            given = [f"{name}={path}" for name, path in given.items()]
        models = [self._model(text) for text in _texts(given, f"{self._place}: inputs")]
        if "base" in self._table:
            base = self._model(self._text("base", None))
            models = [model for model in models if model.source != base.source]
        else:
            found = [model for model in models if model.name in BASE_NAMES]
            if len(found) != 1:
                raise UsageError(
                    f"{self._place}: no base: set base to the model that the experts were "
                    "fine-tuned from"
                )
            base = found[0]
            models.remove(base)
        if not models:
            raise UsageError(f"{self._place}: there is nothing to merge: inputs names no expert")
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(
                f"{self._place}: several inputs have the same name: {', '.join(map(shown, twice))}",
                hint='give each a name of its own with "NAME=PATH"',
            )
        return base, models

    def _model(self, text: str) -> Model:
        """Read "STEP", "PATH", "NAME=STEP" or "NAME=PATH"."""
        name, equals, rest = text.partition("=")
        if not equals or (self._folder / text).exists():
            name, rest = "", text
        if rest in self._earlier:
            return Model(name or rest, Result(rest))
        path = self._folder / rest
        return Model(name or task_name(path), File(path))

    def _rules(self, names: Sequence[str]) -> Iterable[Rule]:
        for number, table in enumerate(
            _tables(self._table.get("rules", []), f"{self._place}: rules"), 1
        ):
            place = f"{self._place}, rule {number}"
            tensors = tuple(_texts(table.get("tensors"), f"{place}: tensors"))
            if not tensors:
                raise UsageError(f"{place}: tensors: expected a glob pattern or a list of them")
            weights = self._weights(table.get("weights", {}), names, place)
            given = {
                key: value for key, value in table.items() if key not in ("tensors", "weights")
            }
            options = self._method_options(given, place, ("tensors", "weights"))
            yield Rule(tensors, options, weights)

    def _method_options(
        self,
        given: Mapping[str, Any],
        place: str,
        engine: Sequence[str] = (*_STEP, *_WHOLE, "steps"),
    ) -> dict[str, Any]:
        """Options of the method by their own names; lambda is lam."""
        result: dict[str, Any] = {}
        for key, value in given.items():
            option = "lam" if key == "lambda" else key.replace("-", "_")
            if option not in self._options:
                spoken = ["lambda" if name == "lam" else name for name in sorted(self._options)]
                _unknown(key, [*engine, *spoken], f"{place} (method {self._method})")
            if option in result:
                raise UsageError(f"{place}: {key} is given twice")
            if not isinstance(value, str | int | float):
                raise UsageError(f"{place}: {key}: expected a number or a text, found {value!r}")
            result[option] = value
        return result

    def _weights(self, value: Any, names: Sequence[str], place: str) -> dict[str, float]:
        """A list with one number per expert, or a table by name."""
        if isinstance(value, list):
            if len(value) != len(names):
                raise UsageError(
                    f"{place}: weights: expected {len(names)} numbers, found {len(value)}",
                    hint=f"the experts are {', '.join(map(shown, names))}",
                )
            value = dict(zip(names, value, strict=True))
        if not isinstance(value, dict):
            raise UsageError(f"{place}: weights: expected a list or a table, found {value!r}")
        for name, number in value.items():
            if name not in names:
                _unknown(name, names, f"{place}: weights")
            if type(number) not in (int, float) or not math.isfinite(number):
                raise UsageError(f"{place}: weights: expected a finite number, found {number!r}")
        return {name: float(number) for name, number in value.items()}


def _parse(path: Path) -> dict[str, Any]:
    with InputFile(path) as source:
        if source.size > MAX_BYTES:
            raise UsageError(f"{shown_path(path)} is too large for a recipe: {source.size} bytes")
        raw = source.read(source.size, 0)
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{shown_path(path)} is not valid TOML: {error}") from error


def _tables(value: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UsageError(f"{place}: expected tables, one after each [[{place.split()[-1]}]]")
    return value


def _texts(value: Any, place: str) -> list[str]:
    """A text or a list of texts, as a list."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        found = "nothing" if value is None else repr(value)
        raise UsageError(f"{place}: expected a list of texts, found {found}")
    return list(items)


def _optional_path(content: Mapping[str, Any], key: str, folder: Path, where: str) -> Path | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{where}: {key}: expected a path, found {value!r}")
    return None if value is None else folder / value


def _refuse_unknown(content: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in content:
        if key not in known:
            _unknown(key, known, place)


def _unknown(key: str, known: Sequence[str], place: str) -> None:
    """Raise UsageError with the nearest known name."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"it may have: {', '.join(map(shown, known))}"
    raise UsageError(f"{place}: unknown key {shown(key)}", hint=hint)


def _refuse_unused(steps: Sequence[Step], where: str) -> None:
    if not steps:
        raise UsageError(f"{where}: steps: expected at least one")
    used = {
        model.source.step
        for step in steps
        for model in (step.base, *step.experts)
        if isinstance(model.source, Result)
    }
    unused = [step.name for step in steps[:-1] if step.name not in used]
    if unused:
        raise UsageError(
            f"{where}: no later step uses the result of {', '.join(map(shown, unused))}",
            hint="name a step among the inputs of a later one; only the last step is written",
        )
