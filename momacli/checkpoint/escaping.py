"""Names of tensors and files as messages may show them: nothing in them that a terminal obeys."""

import os
from pathlib import Path


def shown(text: str, limit: int = 120) -> str:
    """Text from a file: control characters escaped, cut if long."""
    return _escaped(text[:limit]) + ("…" if len(text) > limit else "")


def shown_path(path: Path) -> str:
    r"""A path, whole: control characters escaped, bytes that are not UTF-8 as \xff."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:  # no path of any file, but in a text that names one
        raw = str(path).encode("utf-8", "backslashreplace")
    return _escaped(raw.decode("utf-8", "backslashreplace"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )
