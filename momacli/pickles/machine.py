"""An interpreter of pickles that can do nothing but put plain values together.

A pickle is a program for a stack machine. Python's own executes it: it imports what is named,
calls it, and sets attributes. This one knows the same instructions (pickletools describes each)
but a name stays a name, a call goes to a function that decides by name what to make of it, and
long byte strings stay in the file. What it takes of time and memory grows with the file only.
"""

import struct
from collections.abc import Callable
from typing import Any

from momacli.pickles.instructions import INSTRUCTIONS
from momacli.pickles.values import Global, Instance
from momacli.pickles.window import MalformedError, Window

_MOST_STEPS = 5_000_000
"""A large model takes some ten thousand; each may take a hundred bytes of memory."""

_COPIED = 1 << 12
"""Byte strings up to this length are read at once, longer ones when needed."""

_LONGEST_LINE = 1 << 16
_LONGEST_TEXT = 1 << 30
_DEEPEST_KEY = 8
_LONGEST_KEY = 1 << 10
_SMALLEST_SAME_HASH = (1 << 61) - 1
"""From here on numbers have the hashes of smaller ones; a table of such takes forever."""

Rebuild = Callable[[Global, tuple[object, ...]], object]
"""Makes something of a call, from the function's or class's name and the arguments."""


class Budget:
    """How many instructions are left, for a pickle and all pickles within it together."""

    def __init__(self, steps: int = _MOST_STEPS):
        self._steps = steps

    def spend(self) -> None:
        """Use one up. Raises MalformedError if there is none left."""
        self._steps -= 1
        if self._steps < 0:
            raise MalformedError("it has more instructions than any model takes")


class Machine:
    """Reads one pickle after another out of a window."""

    def __init__(
        self,
        window: Window,
        budget: Budget,
        *,
        rebuild: Rebuild,
        persistent: Callable[[object], object],
    ):
        """persistent: makes something of what is stored outside the pickle, by its id."""
        self.position = 0
        """Offset of the first byte not yet read."""
        self.globals: set[Global] = set()
        """All that was named."""
        self._window = window
        self._rebuild = rebuild
        self._persistent = persistent
        self._buffer, self._buffer_start = b"", 0
        self._budget = budget
        self._start()

    def _start(self) -> None:
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """Read the next pickle. Raises MalformedError."""
        self._start()
        try:
            return self._run()
        except (IndexError, KeyError) as error:
            raise MalformedError("it uses something that it did not make before") from error
        except (TypeError, AttributeError, struct.error, OverflowError) as error:
            raise MalformedError("its instructions do not fit its values") from error
        except ValueError as error:
            if isinstance(error, MalformedError):
                raise
            raise MalformedError("a number or text in it is not valid") from error

    def _run(self) -> object:
        while True:
            self._budget.spend()
            code = self.take(1)
            if code == b".":
                return self.pop()
            step = INSTRUCTIONS.get(code)
            if step is None:
                raise MalformedError(f"no instruction of a pickle begins with byte {code.hex()}")
            step(self)

    # reading

    def take(self, count: int) -> bytes:
        """Read the next bytes."""
        start = self.position - self._buffer_start
        if not 0 <= start <= start + count <= len(self._buffer):
            if count > self._window.size - self.position:
                raise MalformedError(f"it is cut off at byte {self._window.size}")
            self._fill(max(count, min(1 << 16, 256 + len(self._buffer) * 2)))
            start = 0
        self.position += count
        return self._buffer[start : start + count]

    def _fill(self, count: int) -> None:
        self._buffer = self._window.read(count, self.position)
        self._buffer_start = self.position

    def line(self) -> bytes:
        """Read the rest of a line, without its end."""
        start = self.position - self._buffer_start
        stop = self._buffer.find(b"\n", start) if start >= 0 else -1
        if stop < 0:
            self._fill(_LONGEST_LINE)
            start, stop = 0, self._buffer.find(b"\n")
        if stop < 0:
            raise MalformedError("a line in it has no end")
        self.position += stop + 1 - start
        return self._buffer[start:stop]

    def number(self, layout: str) -> Any:
        """Read one number of a struct layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def content(self, count: int) -> "bytes | Window":
        """Read a byte string, or note where a long one lies."""
        if count <= _COPIED:
            return self.take(max(0, count))
        found = self._window.part(self.position, count)
        self.position += count
        return found

    def text(self, count: int) -> str:
        """Read a text of so many bytes."""
        if count > _LONGEST_TEXT:
            raise MalformedError(f"it holds a text of {count} bytes")
        return self.take(count).decode("utf-8", "surrogatepass")

    # the stack

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Take the last value from the stack."""
        return self._stack.pop()

    @property
    def top(self) -> Any:
        """The last value on the stack."""
        return self._stack[-1]

    def mark(self) -> None:
        """Begin a group of values."""
        self._marked.append(self._stack)
        self._stack = []

    def group(self) -> list[Any]:
        """End the group that began last, and take its values from the stack."""
        values = self._stack
        self._stack = self._marked.pop()
        return values

    def drop(self) -> None:
        """Take a value from the stack, or the beginning of a group without any."""
        if self._stack:
            self._stack.pop()
        else:
            self.group()

    def remember(self, key: int) -> None:
        """Note the last value under a number."""
        self._memo[key] = self.top

    def recall(self, key: int) -> None:
        """Put the value of a number on the stack."""
        self.push(self._memo[key])

    def memoize(self) -> None:
        """Note the last value under the next number."""
        self.remember(len(self._memo))

    # what a pickle would have Python do

    def name(self, module: object, name: object) -> None:
        """Put the name of a class or function on the stack."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedError("the name of a class in it is no text")
        found = Global(module, name)
        self.globals.add(found)
        self.push(found)

    def call(self, function: object, arguments: object) -> None:
        """Put on the stack what stands for the result of a call."""
        if not isinstance(arguments, tuple):
            raise MalformedError("the arguments of a call in it are none")
        if isinstance(function, Global):
            self.push(self._rebuild(function, arguments))
        else:
            self.push(Instance(None, (function, *arguments)))

    def new(self, kind: object, arguments: object, _keywords: object = None) -> None:
        """Put a new object on the stack; keyword arguments say nothing of tensors."""
        self.call(kind, arguments)

    def outside(self, key: object) -> None:
        """Put on the stack what is stored outside the pickle."""
        self.push(self._persistent(key))

    def build(self) -> None:
        """Give the last object its attributes."""
        state, target = self.pop(), self.top
        if not isinstance(target, Instance):
            return  # of an OrderedDict or a tensor: not what it holds
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            own = state[0] if isinstance(state[0], dict) else {}
            state = own | state[1]  # __dict__ and __slots__
        target.state = state

    def append(self, values: list[object]) -> None:
        """Append to the list that is the last value."""
        target = self.top
        if isinstance(target, Instance):
            if target.items is None:
                target.items = []
            target = target.items
        _expect(list, target).extend(values)

    def set_items(self, values: list[object]) -> None:
        """Set entries of the dict that is the last value: key, value, key, value, ..."""
        target = self.top
        if isinstance(target, Instance):
            if target.entries is None:
                target.entries = {}
            target = target.entries
        table = _expect(dict, target)
        if len(values) % 2:
            raise MalformedError("a key in it has no value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            table[_as_key(key)] = value

    def add(self, values: list[object]) -> None:
        """Add to the set that is the last value; sets are dicts here, which take less memory."""
        _expect(dict, self.top).update(dict.fromkeys(map(_as_key, values)))

    def freeze(self, values: list[object]) -> None:
        """Put a set that cannot change on the stack."""
        self.push(frozenset(map(_as_key, values)))


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise MalformedError(f"an instruction needs a {kind.__name__}")
    return value


def _as_key(key: object) -> object:
    """A key, if it is one that can be hashed in no time.

    The hash of deeply nested tuples ends the process; that of tuples of the same tuple many
    times, level upon level, takes forever.
    """
    level, count = [key], 0
    for _ in range(_DEEPEST_KEY):
        inner: list[object] = []
        for item in level:
            large = isinstance(item, int) and abs(item) >= _SMALLEST_SAME_HASH
            if large or isinstance(item, list | dict):
                raise MalformedError("a key in it cannot be one")
            if isinstance(item, tuple):
                count += len(item)
                if count > _LONGEST_KEY:
                    raise MalformedError("a key in it has too many parts")
                inner += item
        if not inner:
            return key
        level = inner
    raise MalformedError("a key in it is nested too deeply")
