"""What the file of a merge method says of it, read without importing it or torch."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from momacli.methods._catalog import RESERVED, known_method, method_names

_OPTION_LINE = re.compile(r"(\w+): (.*)")


@dataclass(frozen=True)
class Option:
    """An option of a method."""

    name: str
    type: str  # as annotated
    default: str  # as written; empty where one must be given
    text: str  # what its docstring says


@dataclass(frozen=True)
class Card:
    """A method, for people."""

    name: str  # as on the command line
    title: str  # what it is and who published it where
    text: str  # the rest of the module's docstring: formulas, deviations
    returns: str  # the first paragraph of the function's docstring
    options: tuple[Option, ...]
    takes_weights: bool
    has_scope: bool  # a first pass over the whole model, or over each tensor
    is_random: bool
    is_ordered: bool
    sees_samples: bool = False  # of every task, without labels
    command: str = "merge"  # whose method it is, or "align"


def method_card(name: str) -> Card:
    """Read one method's file. Raises UsageError, with the nearest name, if there is none."""
    spoken = known_method(name)
    return card_of(spoken, Path(__file__).with_name(f"{spoken.replace('-', '_')}.py"))


def card_of(name: str, file: Path) -> Card:
    """Read the file of a method, which has a function of its own name."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    functions = {item.name: item for item in module.body if isinstance(item, ast.FunctionDef)}
    function = functions[file.stem]
    title, _, text = (ast.get_docstring(module) or "").partition("\n")
    doc = ast.get_docstring(function) or ""
    parameters = _keywords(function)
    explained = _explained(doc)
    options = tuple(
        Option(key, kind, default, explained.get(key, ""))
        for key, (kind, default) in parameters.items()
        if key not in RESERVED
    )
    return Card(
        name=name,
        title=title,
        text=text.strip(),
        returns=inspect.cleandoc(doc.partition("\n\n")[0]),
        options=options,
        takes_weights="weights" in parameters,
        has_scope="first_pass" in {*functions, *_imported(module)},
        is_random="draws" in parameters,
        is_ordered="ORDERED" in _constants(module),
    )


def method_cards() -> list[Card]:
    """The cards of all methods."""
    return [method_card(name) for name in method_names()]


def _keywords(function: ast.FunctionDef) -> dict[str, tuple[str, str]]:
    """The annotation and default of each keyword-only parameter, as written."""
    arguments = function.args
    return {
        item.arg: (
            ast.unparse(item.annotation) if item.annotation else "",
            ast.unparse(default) if default else "",
        )
        for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }


def _explained(doc: str) -> Mapping[str, str]:
    """What the lines "option: ..." of a docstring say, each with its indented continuation."""
    found: dict[str, str] = {}
    last = ""
    for line in doc.splitlines():
        match = _OPTION_LINE.match(line)
        if match:
            last = match[1]
            found[last] = match[2]
        elif last and line.startswith(" "):
            found[last] += " " + line.strip()
        else:
            last = ""
    return found


def _imported(module: ast.Module) -> Iterator[str]:
    """Names that the module takes from others."""
    for item in module.body:
        if isinstance(item, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in item.names)


def _constants(module: ast.Module) -> set[str]:
    """Names that the module sets to True."""
    return {
        target.id
        for item in module.body
        if isinstance(item, ast.Assign) and ast.unparse(item.value) == "True"
        for target in item.targets
        if isinstance(target, ast.Name)
    }
