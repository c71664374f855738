"""The merge methods there are, and what each takes; listing them imports none."""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from momacli.errors import UsageError
from momacli.methods._ranges import check_ranges

RESERVED = frozenset({"weights", "base", "draws", "statistic", "name"})
"""Parameters the engine fills in; all others are options of the user."""


@dataclass(frozen=True)
class Method:
    """A merge method: its function, what it needs of the engine, and its options' defaults."""

    name: str  # as on the command line: task-arithmetic
    function: Callable[..., Any]
    first_pass: Callable[..., Any] | None
    elementwise: bool
    ordered: bool
    parameters: Mapping[str, inspect.Parameter]
    source: str  # first line of the module's docstring
    text: str  # the docstrings, for people
    stored_numbers: int | None = None  # a task's, where it makes a model of one from its mask
    most: int | None = None  # experts it takes, where not any number
    one_pass: Callable[..., Any] | None = None  # the base and the merge added to it, compiled
    in_parts: Callable[..., Any] | None = None  # how it takes parts of a tensor, if it does
    passes_on: bool = False  # NaN and infinity, whatever its options: its result tells of them

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The parameters a user may set."""
        return {key: value for key, value in self.parameters.items() if key not in RESERVED}

    @property
    def computes_on_matrices(self) -> bool:
        """Whether torch does the work, on whole tensors, so that a GPU is of use."""
        return not self.elementwise and not self.takes_arrays

    @property
    def takes_arrays(self) -> bool:
        """Whether the function computes in NumPy, without torch."""
        return bool(getattr(self.function, "takes_arrays", False))

    def takes(self, name: str) -> bool:
        """Whether the function has this parameter."""
        return name in self.parameters

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Convert option values to their types. Raises UsageError for unknown or wrong ones."""
        known = self.options
        unknown = [key for key in options if key not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = "it has: " + (", ".join(map(option_flag, known)) or "none")
            raise UsageError(
                f"method {self.name} has no option {', '.join(map(option_flag, unknown))}",
                hint=f"did you mean {option_flag(near[0])}?" if near else hint,
            )
        converted = {
            key: convert_option(f"{option_flag(key)} of {self.name}", known[key], value)
            for key, value in options.items()
        }
        check_ranges(self.name, converted, {key: option_flag(key) for key in converted})
        return converted


def check_count(method: Method, experts: int) -> None:
    """Refuse more experts than a method takes. Raises UsageError."""
    if method.most is not None and experts > method.most:
        taken = "one expert" if method.most == 1 else f"at most {method.most} experts"
        raise UsageError(
            f"{method.name} takes {taken}, found {experts}",
            hint="multislerp and karcher take any number of experts",
        )


def method_names() -> list[str]:
    """Names of all methods: the files of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(_spoken(file.stem) for file in files if not file.stem.startswith("_"))


def known_method(name: str) -> str:
    """A method's name as the catalog has it. Raises UsageError, with the nearest, if unknown."""
    spoken, names = _spoken(name), method_names()
    if spoken not in names:
        near = difflib.get_close_matches(spoken, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UsageError(f"there is no merge method {name}", hint=hint)
    return spoken


def load_method(name: str) -> Method:
    """Import one method by its name. Raises UsageError, with the nearest name, if unknown."""
    spoken = known_method(name)
    stem = spoken.replace("-", "_")
    module: ModuleType = importlib.import_module(f"momacli.methods.{stem}")
    function = getattr(module, stem)
    signature = inspect.signature(function)
    parameters = dict(list(signature.parameters.items())[1:])  # all but task_vectors
    lines = inspect.getdoc(module) or ""
    return Method(
        name=spoken,
        function=function,
        first_pass=getattr(module, "first_pass", None),
        elementwise=bool(module.ELEMENTWISE),
        ordered=bool(getattr(module, "ORDERED", False)),
        parameters=parameters,
        source=lines.split("\n", 1)[0],
        text=f"{lines}\n\n{inspect.getdoc(function)}",
        stored_numbers=getattr(module, "STORED_NUMBERS", None),
        most=getattr(module, "MAX_EXPERTS", None),
        one_pass=getattr(module, "one_pass", None),
        in_parts=getattr(module, "in_parts", None),
        passes_on=bool(getattr(module, "PASSES_ON_NONFINITE", False)),
    )


def _spoken(name: str) -> str:
    return name.replace("_", "-")


def option_flag(option: str) -> str:
    """An option of a method as the command line takes it."""
    own = {name: f"--{name}" for name in ("density", "aggregate", "task")} | {"lam": "--lambda"}
    return own.get(option, f"--set {_spoken(option)}")


def convert_option(what: str, parameter: inspect.Parameter, value: Any) -> Any:
    """Convert a value to the type of a parameter. Raises UsageError, naming what it is of."""
    kind = parameter.annotation
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        expected = " | ".join(map(str, get_args(kind)))
    else:
        kind = next((item for item in get_args(kind) if item is not type(None)), kind)
        expected = getattr(kind, "__name__", str(kind))
        try:
            if kind is bool:
                return {"true": True, "false": False}[str(value).lower()]
            converted = kind(value)
            if kind is str or (math.isfinite(converted) and converted == float(value)):
                return converted
        except (TypeError, ValueError, KeyError, OverflowError):
            pass
    raise UsageError(f"{what}: expected {expected}, found {value}")
