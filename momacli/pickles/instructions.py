"""What each instruction of a pickle does to the machine that reads it."""

import codecs
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from momacli.pickles.values import Global
from momacli.pickles.window import MalformedError, Window

if TYPE_CHECKING:
    from momacli.pickles.machine import Machine

_LONGEST_NUMBER = 1 << 10


def _integer(line: bytes) -> "int | bool":
    special = {b"00": False, b"01": True}
    if line in special:
        return special[line]
    if len(line) > _LONGEST_NUMBER:
        raise MalformedError("a number in it is too long")
    return int(line.rstrip(b"L"))


def _long(machine: "Machine", count: int) -> int:
    if not 0 <= count <= _LONGEST_NUMBER:
        raise MalformedError("a number in it is too long")
    return int.from_bytes(machine.take(count), "little", signed=True)


def _quoted(line: bytes) -> str:
    """A byte string as Python 2 wrote it, as text."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise MalformedError("a text in it has no quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _legacy_text(machine: "Machine", count: int) -> "str | Window":
    """A byte string of Python 2: a text, unless it is long."""
    found = machine.content(_natural(count))
    if not isinstance(found, bytes):
        return found
    return found.decode("latin-1")


def _natural(count: int) -> int:
    if count < 0:
        raise MalformedError("the length of a text in it is negative")
    return count


def _frame(machine: "Machine") -> None:
    machine.take(8)  # its length: of use to those who read a frame at a time


def _put_tuple(machine: "Machine", count: int) -> None:
    values = [machine.pop() for _ in range(count)]
    machine.push(tuple(reversed(values)))


def _dict(machine: "Machine", values: list[object]) -> None:
    machine.push({})
    machine.set_items(values)


def _object(machine: "Machine", values: list[object]) -> None:
    kind, *arguments = values
    machine.new(kind, tuple(arguments))


def _extension(_machine: "Machine") -> None:
    raise MalformedError("it uses copyreg's extension codes, which only their author knows")


def _buffer(_machine: "Machine") -> None:
    raise MalformedError("part of it is outside the file (a pickle with out-of-band buffers)")


INSTRUCTIONS: Mapping[bytes, Callable[["Machine"], object]] = {
    # constants
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    # numbers
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"I": lambda m: m.push(_integer(m.line())),
    b"L": lambda m: m.push(_integer(m.line())),
    b"F": lambda m: m.push(float(m.line()[:_LONGEST_NUMBER])),
    b"\x8a": lambda m: m.push(_long(m, m.number("<B"))),
    b"\x8b": lambda m: m.push(_long(m, m.number("<i"))),
    # texts
    b"\x8c": lambda m: m.push(m.text(m.number("<B"))),
    b"X": lambda m: m.push(m.text(m.number("<I"))),
    b"\x8d": lambda m: m.push(m.text(m.number("<Q"))),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"S": lambda m: m.push(_quoted(m.line())),
    b"U": lambda m: m.push(_legacy_text(m, m.number("<B"))),
    b"T": lambda m: m.push(_legacy_text(m, m.number("<i"))),
    # bytes
    b"C": lambda m: m.push(m.content(m.number("<B"))),
    b"B": lambda m: m.push(m.content(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.content(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.content(m.number("<Q"))),
    b"\x97": _buffer,
    b"\x98": _buffer,
    # groups
    b"(": lambda m: m.mark(),
    b"0": lambda m: m.drop(),
    b"1": lambda m: m.group(),
    b"2": lambda m: m.push(m.top),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.group())),
    b"\x85": lambda m: _put_tuple(m, 1),
    b"\x86": lambda m: _put_tuple(m, 2),
    b"\x87": lambda m: _put_tuple(m, 3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(list(m.group())),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.group()),
    b"}": lambda m: m.push({}),
    b"d": lambda m: _dict(m, m.group()),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.group()),
    b"\x8f": lambda m: m.push({}),
    b"\x90": lambda m: m.add(m.group()),
    b"\x91": lambda m: m.freeze(m.group()),
    # what was made before
    b"p": lambda m: m.remember(_integer(m.line())),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.memoize(),
    b"g": lambda m: m.recall(_integer(m.line())),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    # names, calls and objects
    b"c": lambda m: m.name(m.line().decode("utf-8"), m.line().decode("utf-8")),
    b"\x93": lambda m: m.name(*[m.pop(), m.pop()][::-1]),
    b"R": lambda m: m.call(*[m.pop(), m.pop()][::-1]),
    b"\x81": lambda m: m.new(*[m.pop(), m.pop()][::-1]),
    b"\x92": lambda m: m.new(*[m.pop(), m.pop(), m.pop()][::-1]),
    b"i": lambda m: m.new(
        Global(m.line().decode("utf-8"), m.line().decode("utf-8")), tuple(m.group())
    ),
    b"o": lambda m: _object(m, m.group()),
    b"b": lambda m: m.build(),
    b"P": lambda m: m.outside(m.line().decode("utf-8")),
    b"Q": lambda m: m.outside(m.pop()),
    b"\x82": _extension,
    b"\x83": _extension,
    b"\x84": _extension,
    # what concerns the writing alone
    b"\x80": lambda m: m.take(1),
    b"\x95": _frame,
}
"""What each instruction does, by its first byte."""
