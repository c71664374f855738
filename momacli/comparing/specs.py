"""What is compared, as a person writes it: "ties:lambda=0.3:density=0.1+moma:steps=100".

A merge method, then perhaps "+" and an alignment of its result; after each, its options, every
one behind a colon. `average` alone is the merged model as it is.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from momacli.comparing.alignments import ALIGNMENTS, alignment_arguments
from momacli.errors import UsageError
from momacli.merging.catalog import find_method, known_method, method_names, sample_method

_JOINT = re.compile(r"\+(?=[a-z])")  # not that of regmean++ or of 1e+3
_MAX_LIST = 2000

BASES = ("average", "task-arithmetic", "ties")
"""The merges whose alignments the paper compares (Tables 2 and 3)."""

_PAPER = (
    "fisher",
    "regmean",
    "concrete-task-arithmetic",
    "concrete-adamerging",
    "adamerging:per=task",
    *(f"{base}{end}" for base in BASES for end in ("", "+surgery", "+probsurgery", "+moma")),
)
"""The rows of the paper's Table 2, in its order; those that this version has are compared."""


@dataclass(frozen=True)
class Step:
    """A method and its options, as text."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As it is written on the command line."""
        return ":".join([self.name, *(f"{key}={value}" for key, value in self.options)])

    @property
    def said(self) -> str:
        """The options for people, such as " (lambda 0.3)"; empty where there are none."""
        words = ", ".join(f"{key} {value}" for key, value in self.options)
        return f" ({words})" if words else ""

    @property
    def sees_samples(self) -> bool:
        """Whether it is a merge that needs unlabeled samples."""
        return sample_method(self.name) is not None

    @property
    def scope(self) -> str | None:
        """The option `--scope` of `moma merge`, which is none of the method's own."""
        return dict(self.options).get("scope")

    @property
    def own_options(self) -> dict[str, str]:
        """The options of a merge method, by the names of its function's parameters."""
        return {_python_name(key): value for key, value in self.options if key != "scope"}

    def merge_arguments(self) -> list[str]:
        """The options as `moma merge` takes them."""
        scope = [] if self.scope is None else ["--scope", self.scope]
        own = [f"{key}={value}" for key, value in self.options if key != "scope"]
        return [*scope, *(word for option in own for word in ("--set", option))]


@dataclass(frozen=True)
class Spec:
    """A row of the comparison: a merge, and perhaps an alignment of its result."""

    merge: Step
    alignment: Step | None = None

    def __str__(self) -> str:
        """As it is written on the command line."""
        return "+".join(str(step) for step in (self.merge, self.alignment) if step)

    @property
    def base(self) -> "Spec":
        """The row of the merge alone."""
        return Spec(self.merge)

    @property
    def sees_samples(self) -> bool:
        """Whether the row needs unlabeled samples."""
        return self.alignment is not None or self.merge.sees_samples

    @property
    def label(self) -> str:
        """What the row is called in a table."""
        if self.alignment is None:
            return f"{self.merge.name}{self.merge.said}"
        return f"w/ {ALIGNMENTS[self.alignment.name].title}{self.alignment.said}"

    def with_option(self, key: str, value: str) -> "Spec":
        """The same with another option of the alignment."""
        assert self.alignment is not None
        options = (*self.alignment.options, (key, value))
        return replace(self, alignment=replace(self.alignment, options=options))

    def without_option(self, key: str) -> "Spec":
        """The same without an option of the alignment."""
        assert self.alignment is not None
        options = tuple(pair for pair in self.alignment.options if pair[0] != key)
        return replace(self, alignment=replace(self.alignment, options=options))


def read_specs(texts: Sequence[str]) -> tuple[list[Spec], set[Spec]]:
    """The rows that a list of methods means, each once, and those of them that were named.

    texts: rows, several joined by commas, or "all" or "paper". A row "with" an alignment brings
        the row of the merge alone along, before it.

    Raises UsageError naming every row that cannot be, with the nearest name.
    """
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    if not words or len(words) > _MAX_LIST:
        raise UsageError(
            "no method is given" if not words else f"{len(words)} methods are given",
            hint="such as --methods average,ties+moma, or --methods all",
        )
    specs: list[Spec] = []
    named: set[Spec] = set()
    problems: list[str] = []
    for word in words:
        if word in _PRESETS:
            specs += _preset(word)
            continue
        try:
            spec = _checked(_parsed(word))
        except UsageError as error:
            hint = f" ({error.hint})" if error.hint else ""
            problems.append(f"{word}: {error.message}{hint}")
            continue
        specs.append(spec)
        named.add(spec)
    if problems:
        raise UsageError(
            f"{len(problems)} of {len(words)} methods cannot be compared",
            details=problems,
            hint="`moma methods` lists the methods and their options",
        )
    return list(_grouped(specs)), named


_PRESETS = ("all", "paper")


def _preset(name: str) -> list[Spec]:
    methods = method_names()
    if name == "paper":
        found = [_parsed(row) for row in _PAPER]
        known = [one for one in found if one.merge.name in methods]
        return [one for one in known if not one.alignment or one.alignment.name in ALIGNMENTS]
    plain = [*BASES, *(method for method in methods if method not in BASES)]
    aligned = [Spec(Step(base), Step(name)) for base in BASES for name in ALIGNMENTS]
    return [*(Spec(Step(method)) for method in plain), *aligned]


def _grouped(specs: Sequence[Spec]) -> Iterator[Spec]:
    """Each once, alignments behind the merge that they are of."""
    for base in dict.fromkeys(spec.base for spec in specs):
        yield base
        yield from dict.fromkeys(spec for spec in specs if spec.base == base and spec.alignment)


def _parsed(word: str) -> Spec:
    first, *rest = _JOINT.split(word)
    if len(rest) > 1:
        raise UsageError("one merge and one alignment make a row")
    return Spec(_step(first), _step(rest[0]) if rest else None)


def _step(text: str) -> Step:
    name, *options = text.split(":")
    pairs = []
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals and value):
            raise UsageError(f"expected OPTION=VALUE behind a colon, found {option!r}")
        pairs.append((key.strip().replace("_", "-"), value.strip()))
    if len({key for key, _ in pairs}) < len(pairs):
        raise UsageError("an option is given twice")
    return Step(name.strip(), tuple(pairs))


def _checked(spec: Spec) -> Spec:
    """The same with names as the catalog has them. Raises UsageError, also for their options."""
    try:
        merge = replace(spec.merge, name=known_method(spec.merge.name))
    except UsageError as error:
        near = difflib.get_close_matches(spec.merge.name, _PRESETS, n=1)
        raise UsageError(
            error.message, hint=f"did you mean {near[0]}?" if near else error.hint
        ) from error
    method = find_method(merge.name)
    known = [_written(name) for name in method.options]
    known += ["scope"] if method.first_pass else []
    if unknown := [key for key, _ in merge.options if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UsageError(
            f"{merge.name} has no option {', '.join(unknown)}",
            hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}",
        )
    method.check(merge.own_options)
    if spec.alignment is not None:
        alignment_arguments(spec.alignment.name, spec.alignment.options)
        if method.stored_numbers is not None:
            raise UsageError("it makes a model of every task, which leaves nothing to align")
    return replace(spec, merge=merge)


def _python_name(key: str) -> str:
    return "lam" if key == "lambda" else key.replace("-", "_")


def _written(parameter: str) -> str:
    return "lambda" if parameter == "lam" else parameter.replace("_", "-")
