"""A table in LaTeX, for the package booktabs."""

from momacli.comparing.table import Cell, Table

_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_"},
}


def as_latex(table: Table) -> str:
    """A tabular with the best in bold; what failed stands above it as comments."""
    lines = [f"% {' '.join(note.split())}" for note in table.notes]
    lines.append(rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}")
    lines += [r"\toprule", _row([_escaped(title) for title in table.header]), r"\midrule"]
    for line in table.lines:
        label = (r"\quad " if line.indented else "") + _escaped(line.label)
        lines.append(_row([label, *map(_cell, line.cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell) -> str:
    text = _escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text


def _escaped(text: str) -> str:
    """Text whose special signs are printed as they are."""
    return "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))
