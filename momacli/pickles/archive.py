"""Where the members of a zip archive lie, as PyTorch writes it: stored, not compressed.

Only the directory is read, into no more memory than it has bytes. Every member has to lie
within the file; what is compressed is refused, so nothing grows on unpacking.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from momacli.pickles.window import MalformedError, Window

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

_LONGEST_COMMENT = 1 << 16
_FULL = 0xFFFFFFFF  # a number that is in the 64-bit fields instead


@dataclass(frozen=True)
class Member:
    """One file of an archive, and its checksum; 0 where none was computed."""

    packed: Window
    is_stored: bool  # as it is, neither compressed nor encrypted
    crc: int

    @property
    def content(self) -> Window:
        """The bytes of the file. Raises MalformedError where they are not there as they are."""
        if not self.is_stored:
            raise MalformedError(
                "it is compressed, which torch.save never does: unpack it and put it together "
                "without compression (zip -0)"
            )
        return self.packed


def members(archive: Window) -> dict[str, Member]:
    """Find all members by name. Raises MalformedError."""
    try:
        start, size = _directory(archive)
        directory = archive.part(start, size).read(size, 0)
        found: dict[str, Member] = {}
        for name, member in _entries(archive, directory):
            if name in found:
                raise MalformedError("its directory names a member twice")
            found[name] = member
    except (struct.error, UnicodeDecodeError) as error:
        raise MalformedError("its directory is damaged") from error
    return found


def _directory(archive: Window) -> tuple[int, int]:
    """Where the directory begins, and its length."""
    tail_start = max(0, archive.size - _END.size - _LONGEST_COMMENT)
    tail = archive.read(archive.size - tail_start, tail_start)
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise MalformedError("it is cut off: a zip archive has its directory at the end")
    _, _, _, _, _, size, start, _ = _END.unpack_from(tail, place)
    locator = archive.read(_LOCATOR_64.size, max(0, tail_start + place - _LOCATOR_64.size))
    if locator[:4] == b"PK\6\7":
        _, _, offset, _ = _LOCATOR_64.unpack(locator)
        end = _END_64.unpack(archive.part(offset, _END_64.size).read(_END_64.size, 0))
        if end[0] != b"PK\6\6":
            raise MalformedError("its directory is damaged")
        size, start = end[8], end[9]
    return start, size


def _entries(archive: Window, directory: bytes) -> Iterator[tuple[str, Member]]:
    position = 0
    while position < len(directory):
        fields = _ENTRY.unpack_from(directory, position)
        if fields[0] != b"PK\1\2":
            raise MalformedError("its directory is damaged")
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length = fields[10:13]
        offset = fields[16]
        position += _ENTRY.size
        name = directory[position : position + name_length].decode("utf-8")
        position += name_length
        extra = directory[position : position + extra_length]
        position += extra_length + comment_length
        size, packed, offset = _wide([size, packed, offset], extra)
        is_stored = not (flags & 1 or method) and packed == size
        yield name, Member(_content(archive, offset, packed), is_stored, crc)


def _wide(values: list[int], extra: bytes) -> list[int]:
    """Size, packed size and offset, read from the 64-bit field where they are too large."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            numbers = iter(struct.iter_unpack("<Q", extra[position + 4 :][: length // 8 * 8]))
            return [next(numbers, (value,))[0] if value == _FULL else value for value in values]
        position += 4 + length
    return values


def _content(archive: Window, offset: int, size: int) -> Window:
    local = _LOCAL.unpack(archive.part(offset, _LOCAL.size).read(_LOCAL.size, 0))
    if local[0] != b"PK\3\4":
        raise MalformedError("a member is not where its directory says")
    return archive.part(offset + _LOCAL.size + local[9] + local[10], size)
