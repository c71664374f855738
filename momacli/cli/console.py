"""What the commands print: results on stdout, all else on stderr."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from momacli.checkpoint.escaping import shown
from momacli.errors import MomaError

MAX_DETAILS = 40
"""Lines of detail that an error shows; a wall of them hides the hint below."""


def say(text: str) -> None:
    """Print a line on stderr, harmless to a terminal; nobody reading it is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(plain(text), file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """Text with control characters escaped, so that a file's name cannot act on a terminal."""
    return shown(text, limit=len(text))


def is_follower() -> bool:
    """Whether this is one of several processes that torchrun started, and not the first."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def say_error(error: MomaError) -> None:
    """Print an error: what happened, indented details, and what to do."""
    say(f"error: {error.message}")
    hidden = len(error.details) - MAX_DETAILS
    for detail in error.details[:MAX_DETAILS]:
        say(f"  {detail}")
    if hidden > 0:
        say(f"  … and {hidden} more")
    if error.hint:
        say(f"hint: {error.hint}")


def print_path(path: Path) -> None:
    """Print the path of an output on stdout, byte for byte, for `$(...)` to take up."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def print_json(report: Any) -> None:
    """Print a report, a dataclass or a list of them, as JSON on stdout.

    What is not finite is null, for JSON has no such numbers.
    """
    print(json.dumps(_jsonable(report), indent=2, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; numbers are for the caller to format."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1  # columns of words; the ones after them hold numbers and align right


def print_table(table: Table) -> None:
    """Print a table on stdout: ruled on a terminal, aligned with spaces elsewhere."""
    if is_terminal(sys.stdout):
        _print_ruled(table)
    else:
        for line in aligned(table):
            print(line)


def aligned(table: Table) -> list[str]:
    """The lines of a table, its columns two spaces apart."""
    rows = [[plain(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _print_ruled(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    ruled = RichTable(box=box.SIMPLE_HEAD)
    for i, title in enumerate(table.header):
        ruled.add_column(Text(plain(title)), justify="left" if i < table.left else "right")
    for row in table.rows:
        ruled.add_row(*(Text(plain(cell)) for cell in row))
    Console().print(ruled)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads this stream on a screen that can move its cursor."""
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except ValueError:  # closed
        return False


def amount(number: float, unit: str = "") -> str:
    """A number of things for people: 950, 38.2 k, 5.7 M; bytes as kB, MB."""
    prefix = ""
    for larger in ("k", "M", "G", "T"):
        if number < 1000:
            break
        number, prefix = number / 1000, larger
    digits = f"{number:.1f}" if prefix and number < 100 else f"{number:.0f}"
    if unit == "bytes":
        return f"{digits} {prefix}B"
    return " ".join(part for part in (digits, prefix, unit) if part)


def duration(seconds: float) -> str:
    """A time for people: 0.8 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def settings(parameters: Mapping[str, Any]) -> str:
    """The parameters of a method, as a person says them: lambda 0.3, density 0.2."""
    words = []
    for key, value in parameters.items():
        name = "lambda" if key == "lam" else key.replace("_", "-")
        if isinstance(value, Mapping):
            value = " ".join(f"{item}={factor:g}" for item, factor in value.items())
        words.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(words)


def names(items: Sequence[str], limit: int = 6) -> str:
    """A list of names for people, cut where it is long."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
