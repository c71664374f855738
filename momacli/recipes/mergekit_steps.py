"""A merge as mergekit describes it, in steps of moma's.

Its generalized task arithmetic prunes each task vector with a density of its own, then sums
them with or without an election of signs: here a step of pruning for each expert and one that
joins them, or a single step where one method does both.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from momacli.recipes.mergekit_values import Parameter
from momacli.recipes.rules import Rule
from momacli.recipes.steps import File, Model, Origin, Result, Stack, Step

Options = Mapping[str, Any]
Settings = tuple[Options, Mapping[str, float] | None]  # of one tensor


@dataclass(frozen=True)
class TensorValues:
    """What a configuration says of one tensor: of all models, and of each expert."""

    elements: int
    shared: Mapping[str, Any]
    experts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One of mergekit's methods: its inputs, its parameters, and how moma does the same."""

    name: str
    base: Literal["required", "optional", "none"]
    method: str  # moma's
    join: Callable[[TensorValues], Settings]  # that method's options and weights
    shared: Mapping[str, Parameter] = field(default_factory=dict)
    per_expert: Mapping[str, Parameter] = field(default_factory=dict)
    least: int = 1  # experts, the base not counted where there is one
    most: int = 1_000_000
    prune: "Prune | None" = None
    in_one: bool = False  # the method that prunes also joins, where all are pruned alike
    note: str | None = None

    @property
    def known(self) -> set[str]:
        """Names of its parameters."""
        return {*self.shared, *self.per_expert}

    @property
    def expected(self) -> str:
        """The number of experts, for people."""
        if self.least == self.most:
            return f"{self.least} model" + ("s" if self.least > 1 else "")
        return f"at least {self.least} models"


@dataclass(frozen=True)
class Prune:
    """A method that thins out one task vector: the options for one expert and tensor."""

    method: str
    options: Callable[[Mapping[str, Any], Mapping[str, Any], int], Options]


def translated(
    kind: Kind,
    base: File | Stack | None,
    experts: Mapping[str, File | Stack],
    values: Mapping[str, TensorValues],
    *,
    dtype: str | None,
) -> tuple[list[Step], list[str]]:
    """Return the steps that do what the configuration says, and notes for the reader."""
    origin = next(iter(experts.values()))
    start = Model("base", Origin(origin) if base is None else base)
    models = [Model(name, source) for name, source in experts.items()]
    if kind.prune is not None and _anything_pruned(values):
        pruned = {tensor: _pruning(kind.prune, item) for tensor, item in values.items()}
        if kind.in_one and all(_alike(own) for own in pruned.values()):
            whole = {t: _in_one(pruned[t], kind.join(item)) for t, item in values.items()}
            return [_step("", kind.prune.method, start, models, whole, dtype)], []
        steps = []
        for model in models:
            table: dict[str, Settings] = {t: (own[model.name], None) for t, own in pruned.items()}
            name = f"{model.name} pruned"
            steps.append(_step(name, kind.prune.method, start, [model], table, dtype))
        models = [Model(m.name, Result(f"{m.name} pruned")) for m in models]
    else:
        steps = []
    joined = {tensor: kind.join(item) for tensor, item in values.items()}
    steps.append(_step("", kind.method, start, models, joined, dtype))
    return steps, [kind.note] if kind.note else []


def _anything_pruned(values: Mapping[str, TensorValues]) -> bool:
    return any(own["density"] < 1 for item in values.values() for own in item.experts.values())


def _pruning(prune: Prune, values: TensorValues) -> dict[str, Options]:
    """The options of the pruning of one tensor, by expert."""
    return {
        task: prune.options(own, values.shared, values.elements)
        for task, own in values.experts.items()
    }


def _alike(options: Mapping[str, Options]) -> bool:
    first, *others = options.values()
    return all(other == first for other in others)


def _in_one(pruning: Mapping[str, Options], join: Settings) -> Settings:
    """Settings of a method that prunes and joins: what it keeps, and how that is summed."""
    options, weights = join
    how = {key: value for key, value in options.items() if key in ("lam", "aggregate")}
    return {**next(iter(pruning.values())), **how}, weights


def _step(
    name: str,
    method: str,
    base: Model,
    experts: list[Model],
    table: Mapping[str, Settings],
    dtype: str | None,
) -> Step:
    """One step, with rules for the tensors that are not merged like most."""
    groups: dict[str, list[str]] = defaultdict(list)
    for tensor, settings in table.items():
        groups[json.dumps(settings, sort_keys=True)].append(tensor)
    most = max(groups, key=lambda key: len(groups[key]), default="[{}, null]")
    options, weights = json.loads(most)
    rules = []
    for key, tensors in groups.items():
        if key != most:
            own, factors = json.loads(key)
            rules.append(Rule(tuple(map(_escaped, tensors)), own, factors or {}))
    scope = "tensor" if method == "ties" else None
    return Step(
        name, method, base, tuple(experts), options, weights, scope, 0, dtype, (), tuple(rules)
    )


def _escaped(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
