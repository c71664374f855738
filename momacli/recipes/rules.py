"""Rules: what single tensors, found by glob patterns, are merged with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.reader import matches
from momacli.errors import UsageError
from momacli.methods._settings import TensorSettings

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Rule:
    """Options of the method and weights of experts for the tensors that match a pattern."""

    tensors: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)  # by task; others as elsewhere

    def encode(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        return {
            "tensors": list(self.tensors),
            "options": dict(self.options),
            "weights": dict(self.weights),
        }

    @classmethod
    def decode(cls, content: Mapping[str, Any]) -> "Rule":
        """Read what `encode` wrote."""
        weights = {str(task): float(value) for task, value in content["weights"].items()}
        return cls(tuple(map(str, content["tensors"])), dict(content["options"]), weights)


def settings_by_tensor(
    rules: Sequence[Rule],
    names: Iterable[str],
    options: Mapping[str, Any],
    weights: Mapping[str, float] | None,
    experts: Sequence[str],
) -> dict[str, TensorSettings]:
    """Return the settings of each tensor that a rule matches; a later rule wins.

    options, weights: what holds where no rule says otherwise; no weights are all 1.

    Raises UsageError for a pattern that matches no tensor to be merged.
    """
    found: dict[str, TensorSettings] = {}
    known = list(names)
    for rule in rules:
        for name in _matched(rule, known):
            before = found.get(name) or TensorSettings(options, weights)
            own = before.weights
            if rule.weights:
                own = dict.fromkeys(experts, 1.0) | dict(own or {}) | dict(rule.weights)
            found[name] = TensorSettings({**before.options, **rule.options}, own)
    return found


def _matched(rule: Rule, names: Sequence[str]) -> list[str]:
    exact = {pattern for pattern in rule.tensors if not _MAGIC & set(pattern)}
    patterns = [pattern for pattern in rule.tensors if pattern not in exact]
    unused = sorted(exact.difference(names))
    unused += [one for one in patterns if not any(matches(name, [one]) for name in names)]
    if unused:
        raise UsageError(
            f"the rule for {shown(unused[0])!r} matches no tensor to be merged",
            hint=f"names look like {shown(min(names, default=''))}",
        )
    return [name for name in names if name in exact or matches(name, patterns)]
