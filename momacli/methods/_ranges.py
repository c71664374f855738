"""What numbers options of merge methods may be; an option means the same wherever it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from momacli.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, with the least one or without."""

    least: float
    most: float = float("inf")
    with_least: bool = True

    def __contains__(self, number: float | int) -> bool:
        """Whether a number is one of them."""
        return self.least <= number <= self.most and (self.with_least or number > self.least)

    def __str__(self) -> str:
        """How to say it after "expected"."""
        if self.most < float("inf"):
            return f"{self.least:g} to {self.most:g}"
        return f"{'at least' if self.with_least else 'more than'} {self.least:g}"


_SHARE, _COUNT, _POSITIVE = Range(0.0, 1.0), Range(1.0), Range(0.0, with_least=False)

RANGES: Mapping[str, Range] = {
    **dict.fromkeys(("density", "drop_rate", "beta", "gamma", "epsilon"), _SHARE),
    **dict.fromkeys(("common_fraction", "alpha", "dot_threshold"), _SHARE),
    **dict.fromkeys(("k", "batch_size", "max_condition"), _COUNT),
    **dict.fromkeys(("steps", "mask_steps", "max_steps", "mask_lam"), Range(0.0)),
    **dict.fromkeys(("rate", "mask_rate", "base_rate", "lr"), _POSITIVE),
    **dict.fromkeys(("temperature", "floor", "tol"), _POSITIVE),
}
"""By option. A method may ask for more; factors such as lambda and t may be any number."""


def check_ranges(method: str, options: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Raise UsageError with all values that are outside their option's range.

    named: the options as the user writes them.
    """
    wrong = [
        key for key, value in options.items()
        if key in RANGES and value is not None and value not in RANGES[key]
    ]  # fmt: skip
    if not wrong:
        return
    percent = [key for key in wrong if RANGES[key] == _SHARE and 1 < options[key] <= 100]
    raise UsageError(
        f"method {method} cannot work with these",
        details=[f"{named[key]}: expected {RANGES[key]}, found {options[key]:g}" for key in wrong],
        hint=f"{options[percent[0]]:g} % is {options[percent[0]] / 100:g}" if percent else None,
    )
