"""What options in the form NAME=VALUE say."""

from typing import Any

from momacli.errors import UsageError


def options_of(assignments: list[str], **flags: Any) -> dict[str, Any]:
    """The method's options from --set and from the flags of the common ones."""
    options = {key: value for key, value in flags.items() if value is not None}
    for text in assignments:
        name, equals, value = text.partition("=")
        key = name.strip().replace("-", "_")
        key = "lam" if key == "lambda" else key
        if not equals or not key:
            raise UsageError(f"--set: expected OPTION=VALUE, found {text}")
        if key in options:
            raise UsageError(f"option {name} is given twice")
        options[key] = value.strip()
    return options


def weights_of(text: str) -> list[float] | dict[str, float]:
    """Read "1,0.5" or "mnist=1,svhn=0.5"."""
    named: dict[str, float] = {}
    plain: list[float] = []
    for item in text.split(","):
        name, equals, number = item.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UsageError(f"--weights: expected a number, found {number!r}") from None
        if abs(value) == float("inf") or value != value:
            raise UsageError(f"--weights: expected a finite number, found {number}")
        if not equals:
            plain.append(value)
        elif name.strip() in named:
            raise UsageError(f"--weights names {name.strip()} twice")
        else:
            named[name.strip()] = value
    if plain and named:
        raise UsageError("--weights: give a name to every number or to none")
    return named or plain
