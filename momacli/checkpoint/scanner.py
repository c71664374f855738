"""JSON objects walked through member by member, so that nothing is built of what is refused.

A JSON parser that builds the whole first takes 25 times the memory of a hostile text, and half
a minute for the longest header; this one stops at the first thing that does not belong. Members
as programs write them are taken whole by a regular expression, in less than half the time.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

MAX_SMALL = 4096
"""Characters of an object that `Scanner.small_object` reads."""

_SPACE = re.compile(r"[ \t\n\r]*")


class NameTwiceError(ValueError):
    """An object has two members of one name."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class Scanner:
    """A place in a JSON text. What does not parse raises ValueError."""

    def __init__(self, text: str):
        self._text = text
        self._position = 0
        self._skip_space()

    def members(
        self, plain: re.Pattern[str] | None = None
    ) -> Iterator[tuple[str, re.Match[str] | None]]:
        """Yield the names in the object at this place; read the value before the next name.

        plain: matches members whole, the comma after them too; its group `name` is the name as
            it stands. A value that it matched comes with its name and is not to be read.
        """
        self._expect("{")
        names: set[str] = set()
        if self._accept("}"):
            return
        while True:
            found = plain and plain.match(self._text, self._position)
            name = self.string() if found is None else found["name"]
            if name in names:
                raise NameTwiceError(name)
            names.add(name)
            if found is not None:
                self._position = found.end()
                yield name, found
                continue
            self._expect(":")
            yield name, None
            if self._accept("}"):
                return
            self._expect(",")

    def string(self) -> str:
        """Read a string. Half a surrogate pair, which UTF-8 cannot hold, does not parse."""
        if not self.at('"'):
            raise ValueError
        value, self._position = _DECODER.raw_decode(self._text, self._position)
        self._skip_space()
        value.encode()  # UnicodeEncodeError is a ValueError
        return str(value)

    def small_object(self) -> dict[str, Any]:
        """Read an object without objects in it; what is no integer from 0 to 2^63 - 1 is -1."""
        limit = self._position + MAX_SMALL
        stop = self._text.find("}", self._position, limit) + 1
        if not self.at("{") or not stop:
            raise ValueError
        text = self._text[self._position : stop]
        value, length = _DECODER.raw_decode(text)
        if length < len(text):
            raise ValueError
        self._position = stop
        self._skip_space()
        return dict(value)

    def at(self, mark: str) -> bool:
        """Whether the text goes on with this character."""
        return self._text.startswith(mark, self._position)

    def end(self) -> None:
        """Expect the end of the text."""
        if self._position < len(self._text):
            raise ValueError

    def _accept(self, mark: str) -> bool:
        if not self.at(mark):
            return False
        self._position += 1
        self._skip_space()
        return True

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise ValueError

    def _skip_space(self) -> None:
        if self._text[self._position : self._position + 1].isspace():
            match = _SPACE.match(self._text, self._position)
            assert match is not None  # it matches nothing, too
            self._position = match.end()


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make a table of an object's members. Raises NameTwiceError."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise NameTwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return table


def _natural(digits: str) -> int:
    if len(digits) > 19 or digits[0] == "-":
        return -1
    value = int(digits)
    return value if value < 1 << 63 else -1


def _no_number(_: str) -> int:
    return -1


_DECODER = json.JSONDecoder(
    object_pairs_hook=unique,
    parse_int=_natural,
    parse_float=_no_number,
    parse_constant=_no_number,
)
