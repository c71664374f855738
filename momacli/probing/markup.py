"""Pieces of HTML; all text is escaped."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG, and its content in words."""

    svg: bytes
    alt: str


@dataclass(frozen=True)
class Section:
    """A heading, and HTML below it."""

    anchor: str
    heading: str
    parts: Sequence[str]


def section(content: Section) -> str:
    """A heading and what is below it."""
    return (
        f'<section aria-labelledby="{content.anchor}">\n'
        f'<h2 id="{content.anchor}">{escape(content.heading)}</h2>\n'
        + "\n".join(content.parts)
        + "\n</section>"
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{escape(text)}</p>"


def figure(drawing: Drawing, caption: str) -> str:
    """A figure that is in the page itself, and its caption."""
    content = base64.b64encode(drawing.svg).decode()
    return (
        f'<figure><img alt="{escape(drawing.alt)}" src="data:image/svg+xml;base64,{content}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows; one that ends in averages sets them off."""
    mark = ' class="average"' if header[-1] == "average" else ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for name, *cells in rows:
        model = "" if name.startswith("+") or not mark else ' class="model"'
        *most, last = (escape(cell) for cell in cells)
        body = "".join(f"<td>{cell}</td>" for cell in most) + f"<td{mark}>{last}</td>"
        lines.append(f'<tr{model}><th scope="row">{escape(name)}</th>{body}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
