"""The alignments that rows can have, and their options, in the words of `moma align`."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from momacli.alignment.catalog import FILES, feature_method, option_flag
from momacli.alignment.settings import Settings
from momacli.data.sampling import Sampling, parse_share
from momacli.errors import UsageError


@dataclass(frozen=True)
class Alignment:
    """An alignment as a row names it."""

    title: str  # in tables, behind "w/"
    arguments: tuple[str, ...] = ()  # of `moma align`
    has_mask: bool = False


_TITLES = {
    "surgery": "Surgery",
    "probsurgery": "ProbSurgery",
    "surgery-v2": "SurgeryV2",
    "aligned-c": "Aligned-C",
}

ALIGNMENTS: Mapping[str, Alignment] = {
    **{name: Alignment(_TITLES.get(name, name), ("--method", name)) for name in FILES},
    "orthogonal": Alignment("Orthogonal", ("--mask", "none")),
    "linear": Alignment("Linear", ("--mask", "none", "--transform", "linear")),
    "moma": Alignment("MOMA", has_mask=True),
    "paper": Alignment("MOMA as in the paper", ("--recipe", "paper"), has_mask=True),
}
"""Name in a row -> what it stands for; "orthogonal" is the closed form of the paper's Table 4, with
objective=features as it is there, "linear" the same with maps of any kind."""

_KINDS: Mapping[str, type] = {
    "transform": str,
    "prior": float,
    "objective": str,
    "views": int,
    "steps": int,
    "batch-size": int,
    "mask-rate": float,
    "headroom": float,
    "sparsity": float,
    "alpha": float,
}
_SAMPLES = ("sample", "max-samples")


def alignment_arguments(name: str, options: Sequence[tuple[str, str]]) -> list[str]:
    """What `moma align` has to be told. Raises UsageError, with the nearest name."""
    if name not in ALIGNMENTS:
        near = difflib.get_close_matches(name, ALIGNMENTS, n=1)
        raise UsageError(
            f"there is no alignment {name}",
            hint=f"did you mean {near[0]}?" if near else f"there are {', '.join(ALIGNMENTS)}",
        )
    samples = {key: value for key, value in options if key in _SAMPLES}
    if "sample" in samples:
        Sampling(share=parse_share(samples["sample"]))
    if "max-samples" in samples:
        Sampling(count=_converted("max-samples", samples["max-samples"], int))
    own = {key: value for key, value in options if key not in _SAMPLES}
    arguments = [word for key, value in samples.items() for word in (f"--{key}", value)]
    take = _of_features if name in FILES else _of_moma
    return [*ALIGNMENTS[name].arguments, *arguments, *take(name, own)]


def _of_features(name: str, options: Mapping[str, str]) -> list[str]:
    """Options of a method that works on cached features."""
    named = {key.replace("-", "_"): value for key, value in options.items()}
    feature_method(name, named)
    arguments: list[str] = []
    for key, value in named.items():
        flag, _, option = option_flag(key).partition(" ")
        arguments += [flag, f"{option}={value}" if option else value]
    return arguments


def _of_moma(name: str, options: Mapping[str, str]) -> list[str]:
    """Options of moma's own method, in whichever form."""
    for key in options:
        if key not in _KINDS:
            near = difflib.get_close_matches(key, _KINDS, n=1)
            raise UsageError(
                f"{name} has no option {key}",
                hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(_KINDS)}",
            )
    found = {key: _converted(key, value, _KINDS[key]) for key, value in options.items()}
    Settings(**{key.replace("-", "_"): value for key, value in found.items()})
    return [word for key, value in options.items() for word in (f"--{key}", value)]


def _converted(key: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or (kind is float and not math.isfinite(value)):
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{key}: expected {wanted}, found {text}")
    return value
