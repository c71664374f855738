"""All merge methods: those of tensors alone, and those that see samples of every task.

The latter are files of `statistics/` and `adaptation/`, each with a function of its own name that
takes an `Ensemble`. Listing them imports none.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import momacli
from momacli.errors import UsageError
from momacli.methods import _catalog
from momacli.methods._cards import Card, card_of, method_card
from momacli.methods._catalog import Method

FILES: Mapping[str, str] = {
    "adamerging": "adaptation/adamerging.py",
    "adamerging++": "adaptation/adamerging_plus_plus.py",
    "concrete-adamerging": "adaptation/concrete_adamerging.py",
    "concrete-task-arithmetic": "adaptation/concrete_task_arithmetic.py",
    "fisher": "statistics/fisher.py",
    "regmean": "statistics/regmean.py",
    "regmean++": "statistics/regmean_plus_plus.py",
}
"""Where the methods are that see samples."""


@dataclass(frozen=True)
class SampleMethod:
    """A method that sees samples."""

    name: str

    @cached_property
    def _module(self) -> ModuleType:
        parts = Path(FILES[self.name]).with_suffix("").parts
        return importlib.import_module(".".join((momacli.__name__, *parts)))

    @property
    def function(self) -> Callable[..., Any]:
        """Makes the merged tensors of an `Ensemble`, or coefficients of the task vectors."""
        found: Callable[..., Any] = getattr(self._module, Path(FILES[self.name]).stem)
        return found

    @property
    def samples(self) -> int | None:
        """How many samples of a task are enough; None for all."""
        return getattr(self._module, "SAMPLES", None)

    def encoders(self, experts: int) -> int:
        """What is held in memory, in sizes of the merged tensors in float32."""
        of_all, of_each = self._module.ENCODERS, self._module.ENCODERS_PER_EXPERT
        return int(of_all + of_each * experts)

    @property
    def description(self) -> Method:
        """The method for the engine, which cannot compute it tensor by tensor."""
        lines = inspect.getdoc(self._module) or ""
        parameters = dict(list(inspect.signature(self.function).parameters.items())[1:])
        return Method(
            name=self.name,
            function=self.function,
            first_pass=None,
            elementwise=False,
            ordered=False,
            parameters=parameters,
            source=lines.split("\n", 1)[0],
            text=f"{lines}\n\n{inspect.getdoc(self.function)}",
        )

    @property
    def with_coefficients(self) -> Method | None:
        """What makes the output of learned coefficients, tensor by tensor; None if nothing does."""
        function = getattr(self._module, "with_coefficients", None)
        if function is None:
            return None
        parameters = dict(list(inspect.signature(function).parameters.items())[1:])
        return replace(
            self.description,
            function=function,
            first_pass=getattr(self._module, "first_pass", None),
            elementwise=True,
            parameters=parameters,
        )


def sample_method(name: str) -> SampleMethod | None:
    """The method of this name if it sees samples, else None."""
    spoken = name.replace("_", "-")
    return SampleMethod(spoken) if spoken in FILES else None


def method_names() -> list[str]:
    """Names of all methods."""
    return sorted([*_catalog.method_names(), *FILES])


def known_method(name: str) -> str:
    """A method's name as the catalog has it. Raises UsageError, with the nearest, if unknown."""
    spoken, names = name.replace("_", "-"), method_names()
    if spoken not in names:
        near = difflib.get_close_matches(spoken, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UsageError(f"there is no merge method {name}", hint=hint)
    return spoken


def find_method(name: str) -> Method:
    """Import one method by its name. Raises UsageError, with the nearest name, if unknown."""
    found = sample_method(known_method(name))
    return _catalog.load_method(name) if found is None else found.description


def find_card(name: str) -> Card:
    """Read one method's file. Raises UsageError, with the nearest name, if there is none."""
    spoken = known_method(name)
    if spoken not in FILES:
        return method_card(spoken)
    card = card_of(spoken, Path(momacli.__file__).parent / FILES[spoken])
    return replace(card, sees_samples=True, is_random=True, has_scope=False)


def all_cards() -> list[Card]:
    """The cards of all methods."""
    return [find_card(name) for name in method_names()]
