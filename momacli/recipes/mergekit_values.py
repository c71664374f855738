"""Values of mergekit's parameters: filters by name, gradients over layers, defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from momacli.errors import UsageError

Settings = Mapping[str, Any]

REQUIRED: Any = object()
"""Default of a parameter that must be given."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of one of mergekit's methods."""

    type: Literal["number", "integer", "switch"]
    default: Any = REQUIRED


def evaluate(
    name: str,
    parameter: Parameter,
    sources: Sequence[Settings],
    *,
    tensor: str,
    t: float,
    place: str,
) -> Any:
    """Return the value that the first source with one for this tensor has, or the default.

    tensor: its name, of which a filter must be a part.
    t: how far up the layers it is, from 0 to 1: where a list of values is interpolated.

    Raises UsageError for a value of another type, or where one must be given and is not.
    """
    for source in sources:
        if name in source:
            value = _evaluate(parameter, source[name], tensor, t, place)
            if value is not None:
                return value
    if parameter.default is REQUIRED:
        raise UsageError(f"{place}: nothing is given for tensor {tensor}")
    return parameter.default


def check_setting(setting: Any, place: str) -> None:
    """Raise UsageError for what is no value, gradient or list of values with filters."""
    if isinstance(setting, dict):
        setting = [setting]
    if _is_scalar(setting):
        return
    if isinstance(setting, list) and setting:
        if all(map(_is_scalar, setting)):
            return
        if all(isinstance(item, dict) and "value" in item for item in setting):
            for item in setting:
                if set(item) <= {"value", "filter"} and isinstance(item.get("filter"), str | None):
                    check_setting(item["value"], place)
                else:
                    raise UsageError(f"{place}: expected value and filter, found {item!r}")
            return
    raise UsageError(
        f"{place}: expected a value, a list of values, or tables with value and filter, "
        f"found {setting!r}"
    )


def _evaluate(parameter: Parameter, setting: Any, tensor: str, t: float, place: str) -> Any:
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return _converted(parameter, setting, place)
    if all(map(_is_scalar, setting)):
        return _gradient([_converted(parameter, item, place) for item in setting], parameter, t)
    for item in setting:
        wanted = item.get("filter")
        if wanted is None or wanted == "*" or wanted in tensor:
            return _evaluate(parameter, item["value"], tensor, t, place)
    return None


def _gradient(values: Sequence[Any], parameter: Parameter, t: float) -> Any:
    if parameter.type == "switch":
        return values[int(t * (len(values) - 1))]
    position = t * (len(values) - 1)
    below = int(position)
    above = min(len(values) - 1, below + 1)
    fraction = position - below
    return (1 - fraction) * values[below] + fraction * values[above]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _converted(parameter: Parameter, value: Any, place: str) -> Any:
    """YAML 1.1 reads 1e-5 as a text, and yes as true."""
    if parameter.type == "switch":
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise UsageError(f"{place}: expected true or false, found {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf") or isinstance(value, bool):
        raise UsageError(f"{place}: expected a finite number, found {value!r}")
    if parameter.type == "integer" and number != int(number):
        raise UsageError(f"{place}: expected an integer, found {value!r}")
    return number
