"""A stretch of a file or of bytes in memory, read at positions and never beyond its end."""

from dataclasses import dataclass
from typing import Protocol


class MalformedError(ValueError):
    """A pickle, or what it is packed in, is not what it has to be; the text says why."""


class Readable(Protocol):
    """What bytes are read from."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on."""
        ...


class InMemory:
    """Bytes that are held, in the place of a file."""

    def __init__(self, content: bytes):
        self._content = memoryview(content)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer with the bytes from `offset` on."""
        buffer[:] = self._content[offset : offset + len(buffer)]


@dataclass(frozen=True, eq=False)
class Window:
    """`size` bytes of a file from `start` on."""

    file: Readable
    start: int
    size: int

    def read(self, count: int, offset: int) -> bytes:
        """Read `count` bytes from `offset` on, or fewer where the window ends."""
        block = bytearray(max(0, min(count, self.size - offset)))
        if block:
            self.file.read_into(memoryview(block), self.start + offset)
        return bytes(block)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer, which must not reach beyond the window."""
        if not 0 <= offset <= self.size - len(buffer):
            raise IndexError(f"{len(buffer)} bytes at {offset} of {self.size}")
        self.file.read_into(buffer, self.start + offset)

    def part(self, offset: int, size: int) -> "Window":
        """A smaller window within this one. Raises MalformedError where it would reach out."""
        if not (offset >= 0 and 0 <= size <= self.size - offset):
            raise MalformedError(f"it is cut off: {size} bytes expected at {self.start + offset}")
        return Window(self.file, self.start + offset, size)


def window_of(content: bytes) -> Window:
    """All of some bytes."""
    return Window(InMemory(content), 0, len(content))
