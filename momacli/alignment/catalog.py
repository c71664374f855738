"""The ways to align there are, what each takes and adds; listing them imports none.

A method that works on cached features is a file of `features/` with a function of its name.
"""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import momacli
from momacli.errors import UsageError
from momacli.methods._cards import Card, card_of
from momacli.methods._catalog import convert_option

MOMA = "moma"
FILES = {
    "surgery": "features/surgery.py",
    "probsurgery": "features/probsurgery.py",
    "surgery-v2": "features/surgery_v2.py",
    "aligned-c": "features/aligned_c.py",
}
"""Where the methods other than moma's own are."""

ADDING = frozenset({"surgery", "probsurgery", "surgery-v2"})
"""Those that put something behind the model, and so add parameters to it."""

DEEP = frozenset({"surgery-v2"})
"""Those that mend features on their way through the encoder, so that it has to run again."""

_SHARED = {"seed": 0}
_FLAGS = {"steps": "--steps", "batch_size": "--batch-size", "seed": "--seed"}


def method_names() -> list[str]:
    """Names of all methods, moma's own first."""
    return [MOMA, *FILES]


def known_method(name: str) -> str:
    """A method's name as it is listed. Raises UsageError, with the nearest, if unknown."""
    spoken = name.replace("_", "-")
    if spoken not in method_names():
        near = difflib.get_close_matches(spoken, method_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(method_names())}"
        raise UsageError(f"there is no alignment method {name}", hint=hint)
    return spoken


@dataclass(frozen=True)
class FeatureMethod:
    """A method that works on the features of one task at a time, and its options."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]  # with their values

    @property
    def objective(self) -> str:
        """What is brought down."""
        return "L1" if self.name in ADDING else "logits"

    @property
    def steps(self) -> int:
        """How many steps a task takes."""
        return int(self.options["steps"])

    @property
    def own_options(self) -> dict[str, Any]:
        """The options that the function itself takes."""
        return {key: value for key, value in self.options.items() if key not in _SHARED}


def feature_method(name: str, options: Mapping[str, Any]) -> FeatureMethod:
    """Import a method and fill in its options. Raises UsageError for unknown or wrong ones."""
    stem = Path(FILES[name]).stem
    function = getattr(importlib.import_module(f"momacli.features.{stem}"), stem)
    known = {
        key: one for key, one in inspect.signature(function).parameters.items()
        if one.default not in (inspect.Parameter.empty, None)
    }  # fmt: skip
    unknown = [key for key in options if key not in known and key not in _SHARED]
    if unknown:
        raise UsageError(
            f"method {name} has no option {', '.join(option_flag(key) for key in unknown)}",
            hint=f"it has: {', '.join(option_flag(key) for key in [*known, *_SHARED])}",
        )
    values = {key: one.default for key, one in known.items()} | _SHARED
    for key, given in options.items():
        default = inspect.Parameter("seed", inspect.Parameter.KEYWORD_ONLY, annotation=int)
        values[key] = convert_option(
            f"{option_flag(key)} of {name}", known.get(key, default), given
        )
        smallest = 1 if isinstance(values[key], int) and key != "seed" else 0
        if key != "seed" and values[key] < smallest:
            expected = "at least 1" if smallest else "no less than 0"
            raise UsageError(f"{option_flag(key)} of {name} must be {expected}, found {given}")
    return FeatureMethod(name, function, values)


def option_flag(option: str) -> str:
    """An option of a method as the command line takes it."""
    return _FLAGS.get(option, f"--set {option.replace('_', '-')}")


def method_card(name: str) -> Card:
    """Read a method's file. Raises UsageError, with the nearest name, if there is none."""
    spoken, package = known_method(name), Path(momacli.__file__).parent
    if spoken == MOMA:
        module = ast.parse((package / "alignment/moma.py").read_text(encoding="utf-8"))
        title, _, text = (ast.get_docstring(module) or "").partition("\n")
        returns = "Its options are flags of their own: moma align --help."
        return Card(
            spoken, title, text.strip(), returns, (), False, False, True, False, True, "align"
        )
    card = card_of(spoken, package / FILES[spoken])
    options = tuple(option for option in card.options if option.default not in ("", "None"))
    return replace(card, options=options, is_random=True, sees_samples=True, command="align")


def method_cards() -> list[Card]:
    """The cards of all methods."""
    return [method_card(name) for name in method_names()]
