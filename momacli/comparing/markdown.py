"""A table in Markdown, as GitHub reads it."""

from momacli.comparing.table import Cell, Table

_INDENT = "&nbsp;&nbsp;"


def as_markdown(table: Table) -> str:
    """Rows between bars, the best in bold; what failed stands below."""
    rule = ["---", *("---:" for _ in table.header[1:])]
    lines = [_row([_escaped(title) for title in table.header]), _row(rule)]
    for line in table.lines:
        label = (_INDENT if line.indented else "") + _escaped(line.label)
        lines.append(_row([label, *map(_cell, line.cells)]))
    notes = [f"- {_escaped(note)}" for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    return f"**{text}**" if cell.best else text


def _escaped(text: str) -> str:
    """Text whose bars, stars and line breaks are themselves."""
    flat = " ".join(text.split())
    for sign in ("\\", "|", "*", "_", "<", "`"):
        flat = flat.replace(sign, f"\\{sign}")
    return flat
