"""One description of merges that feed each other, whatever file or record it was read from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from momacli.recipes.rules import Rule


@dataclass(frozen=True)
class File:
    """A checkpoint on disk: a file or a folder."""

    path: Path


@dataclass(frozen=True)
class Result:
    """What an earlier step computes; it is never on disk."""

    step: str


@dataclass(frozen=True)
class Layers:
    """Layers start to stop, exclusive, of a model."""

    source: File
    start: int
    stop: int


@dataclass(frozen=True)
class Stack:
    """Layers of several models one above the other, numbered anew from 0.

    What comes before the layers is the first model's, what comes after them the last one's.
    """

    pieces: tuple[Layers, ...]


@dataclass(frozen=True)
class Origin:
    """Zeros in the shape of a model, so that the task vectors are the weights themselves."""

    source: "File | Stack"


Source = File | Result | Stack | Origin


@dataclass(frozen=True)
class Model:
    """A base or an expert of a step, by the name of its task."""

    name: str
    source: Source


@dataclass(frozen=True)
class Step:
    """One merge."""

    name: str
    method: str
    base: Model
    experts: tuple[Model, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | None = None  # by task, 1 for those not named
    scope: str | None = None
    seed: int = 0
    dtype: str | None = None
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class MergeRecipe:
    """Steps in an order in which each finds what it needs; the last one's result is written.

    as_one_model: write a single model without heads of its tasks, as mergekit does.
    notes: what the reader should know about how the description was understood.
    """

    steps: tuple[Step, ...]
    output: Path | None = None
    heads: tuple[str, ...] = ()
    config: Path | None = None
    vocab: str | None = None
    as_one_model: bool = False
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every checkpoint on disk that is read, in the order of first use."""
        sources = (model.source for step in self.steps for model in (step.base, *step.experts))
        return list(dict.fromkeys(path for source in sources for path in _files(source)))


def _files(source: Source) -> Iterator[Path]:
    if isinstance(source, File):
        yield source.path
    elif isinstance(source, Stack):
        yield from (piece.source.path for piece in source.pieces)
    elif isinstance(source, Origin):
        yield from _files(source.source)


def encode_steps(recipe: MergeRecipe) -> dict[str, Any]:
    """Describe the steps as JSON values; a file is its place in `recipe.files`."""
    places = {path: index for index, path in enumerate(recipe.files)}
    return {
        "steps": [_encode_step(step, places) for step in recipe.steps],
        "as_one_model": recipe.as_one_model,
    }


def with_option(content: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    """What `encode_steps` wrote, with an option of the last step's method."""
    *others, last = content["steps"]
    changed = {**last, "options": {**last["options"], option: value}}
    return {**content, "steps": [*others, changed]}


def decode_steps(content: Mapping[str, Any], files: Sequence[Path]) -> MergeRecipe:
    """Read what `encode_steps` wrote. Raises ValueError, KeyError or TypeError if it is odd."""
    steps = tuple(_decode_step(item, files) for item in content["steps"])
    check_steps(steps)
    return MergeRecipe(steps, as_one_model=bool(content["as_one_model"]))


def check_steps(steps: Sequence[Step]) -> None:
    """Raise ValueError for steps that no reader of recipes would make."""
    if not steps:
        raise ValueError("no steps")
    earlier: set[str] = set()
    for step in steps:
        names = [model.name for model in step.experts]
        if not names or len(set(names)) < len(names):
            raise ValueError("no experts, or two of the same name")
        for model in (step.base, *step.experts):
            if isinstance(model.source, Result) and model.source.step not in earlier:
                raise ValueError("a step that needs what comes later")
        earlier.add(step.name)


def _encode_step(step: Step, places: Mapping[Path, int]) -> dict[str, Any]:
    return {
        "name": step.name,
        "method": step.method,
        "base": _encode_model(step.base, places),
        "experts": [_encode_model(model, places) for model in step.experts],
        "options": dict(step.options),
        "weights": None if step.weights is None else dict(step.weights),
        "scope": step.scope,
        "seed": step.seed,
        "dtype": step.dtype,
        "exclude": list(step.exclude),
        "rules": [rule.encode() for rule in step.rules],
    }


def _decode_step(content: Mapping[str, Any], files: Sequence[Path]) -> Step:
    weights = content["weights"]
    return Step(
        name=str(content["name"]),
        method=str(content["method"]),
        base=_decode_model(content["base"], files),
        experts=tuple(_decode_model(item, files) for item in content["experts"]),
        options=dict(content["options"]),
        weights=None if weights is None else {key: float(w) for key, w in weights.items()},
        scope=text_or_none(content["scope"]),
        seed=int(content["seed"]),
        dtype=text_or_none(content["dtype"]),
        exclude=tuple(map(str, content["exclude"])),
        rules=tuple(Rule.decode(item) for item in content["rules"]),
    )


def text_or_none(value: object) -> str | None:
    """Read a text that need not be there."""
    return None if value is None else str(value)


def _encode_model(model: Model, places: Mapping[Path, int]) -> dict[str, Any]:
    return {"name": model.name, **_encode_source(model.source, places)}


def _encode_source(source: Source, places: Mapping[Path, int]) -> dict[str, Any]:
    if isinstance(source, File):
        return {"file": places[source.path]}
    if isinstance(source, Result):
        return {"step": source.step}
    if isinstance(source, Origin):
        return {"origin": _encode_source(source.source, places)}
    pieces = [[places[item.source.path], item.start, item.stop] for item in source.pieces]
    return {"stack": pieces}


def _decode_model(content: Mapping[str, Any], files: Sequence[Path]) -> Model:
    return Model(str(content["name"]), _decode_source(content, files))


def _decode_source(content: Mapping[str, Any], files: Sequence[Path]) -> Source:
    if "step" in content:
        return Result(str(content["step"]))
    if "origin" in content:
        inner = _decode_source(content["origin"], files)
        if isinstance(inner, Result | Origin):
            raise ValueError("an origin in the shape of no model on disk")
        return Origin(inner)
    if "stack" in content:
        return Stack(
            tuple(
                Layers(File(files[place]), int(start), int(stop))
                for place, start, stop in content["stack"]
            )
        )
    return File(files[content["file"]])
