"""Sound files are damaged at random; only the tool's own error may come out."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from raw_files import entry, raw
from safetensors import deserialize, safe_open

from momacli.checkpoint.header import read_header
from momacli.errors import MomaError

SEEDS = [
    raw({"a.weight": entry(), "b.bias": entry("BF16", [2, 2], [8, 16])}, bytes(range(16))),
    raw(
        {
            "__metadata__": {"format": "pt", "k": '{"nested": [1, 2]}'},
            "scalar": entry("I64", [], [0, 8]),
            "empty": entry("F16", [3, 0, 2], [8, 8]),
            "é💥": entry("F8_E4M3", [3], [8, 11]),
        },
        bytes(range(11)),
    ),
    raw({f"layer.{i}": entry("U8", [1], [i, i + 1]) for i in range(12)}, bytes(range(12))),
    raw({"six": entry("F6_E3M2", [4], [0, 3]), "four": entry("F4", [2], [3, 4])}, bytes(4)),
    raw(json.dumps({"a": entry()}, indent=1).ljust(640), bytes(8)),
    raw(
        json.dumps({f"a{i}": entry("U8", [1, 2], [2 * i, 2 * i + 2]) for i in range(4)}, indent=1),
        bytes(8),
    ),
    raw({}),
]
NUMBERS = ["0", "-0", "1", "-1", "2", "8", "1.0", "1e0", "00", "true", "null", "[]", "{}", '"1"']
NUMBERS += ["NaN", "Infinity", str(1 << 63), str((1 << 63) - 1), str(1 << 64), "9" * 400]
STRINGS = ["", "a", "a.weight", "__metadata__", "dtype", "shape", "data_offsets", "F4", "BF16"]
STRINGS += ["F128", "\\ud800", "\\ud83d\\ude00", "\\u0000", "\\u0061", "\\x", "\0", "é", "{", "\\"]
MARKS = ["{", "}", "[", "]", ",", ":", '"', " ", "\n", "\v", "\ufeff"]


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Damage a file in one to three places, mostly in its header and with its true length."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        header = draw.choice([bytewise, token, token, member, shift])(header, draw)
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data) + 1)] + bytes(draw.randrange(9))
    whole = raw(header, data)
    if draw.random() < 0.1:
        whole = draw.randbytes(8) + whole[8:]
    if draw.random() < 0.1:
        whole = bytewise(whole, draw)
    return whole


def bytewise(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit, or leave out, put in or repeat some bytes."""
    start = draw.randrange(len(content) + 1)
    stop = min(len(content), start + draw.randrange(1, 9))
    found = content[start:stop]
    flipped = bytes([found[0] ^ 1 << draw.randrange(8)]) + found[1:] if found else b"\0"
    new = draw.choice([flipped, b"", found * 2, draw.randbytes(len(found)), b"\0" * len(found)])
    return content[:start] + new + content[stop:]


def token(header: bytes, draw: random.Random) -> bytes:
    """Put another number, string or mark where one stands."""
    text = header.decode("utf-8", "replace")
    pattern, choices = draw.choice([(r"\d+", NUMBERS), (r'(?<=")[^"]*(?=")', STRINGS)] * 3 + [
        (r"[\[\]{}:,\"]", MARKS),
    ])  # fmt: skip
    found = list(re.finditer(pattern, text))
    if not found:
        return header
    place = draw.choice(found)
    if place[0].isascii() and place[0].isdigit() and draw.random() < 0.5:
        choices = [str(int(place[0]) + step) for step in (-8, -1, 1, 8)]
    return (text[: place.start()] + draw.choice(choices) + text[place.end() :]).encode()


def member(header: bytes, draw: random.Random) -> bytes:
    """Repeat, leave out or exchange members between two commas."""
    parts = header.split(b",")
    one, two = draw.randrange(len(parts)), draw.randrange(len(parts))
    if draw.random() < 0.4:
        parts.insert(one, parts[two])
    elif draw.random() < 0.5:
        parts[one], parts[two] = parts[two], parts[one]
    else:
        del parts[one]
    return b",".join(parts)


def shift(header: bytes, draw: random.Random) -> bytes:
    """Move a tensor's place in the data."""
    found = list(re.finditer(rb"\[\s*(\d+),\s*(\d+)\s*\]", header))
    if not found:
        return header
    place, by = draw.choice(found), draw.choice([-8, -1, 1, 8])
    moved = json.dumps([max(0, int(number) + by) for number in place.groups()]).encode()
    return header[: place.start()] + moved + header[place.end() :]


def check(count: int, seed: int, path: Path) -> Counter[str]:
    """Read mutated files; count how many are sound, and the reasons for which others are not."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        content = mutate(draw.choice(SEEDS), draw)
        path.write_bytes(content)
        try:
            header = read_header(path)
        except MomaError as error:
            outcomes[reason(error.message, path)] += 1
            continue
        outcomes["sound"] += 1
        expected = dict(deserialize(content))
        assert header.entries.keys() == expected.keys()
        for name, found in header.entries.items():
            assert found.dtype == expected[name]["dtype"]
            assert list(found.shape) == expected[name]["shape"]
            assert content[found.start : found.stop] == bytes(expected[name]["data"])
        with safe_open(path, "np") as opened:
            assert dict(header.metadata) == (opened.metadata() or {})
    return outcomes


def reason(message: str, path: Path) -> str:
    """A message without what is peculiar to the file."""
    before, why = message.split(str(path))
    assert before == ""
    why = re.sub(r"tensor .*?(?=:? (has|is|expected|overlaps))", "tensor", why)
    return re.sub(r"\d+|(before|begins:|bytes|dtype|found|names) .*", "N", why)


def test_of_a_thousand_damaged_headers_each_is_refused_or_read_as_the_library_reads_it(
    tmp_path: Path,
):
    outcomes = check(1_000, 0, tmp_path / "fuzz")

    assert outcomes["sound"] > 20
    assert len(outcomes) > 15


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_of_a_hundred_thousand_damaged_headers_each_is_refused_or_read_as_the_library_reads_it(
    seed: int, tmp_path: Path
):
    outcomes = check(10_000, seed, tmp_path / "fuzz")

    assert outcomes["sound"] > 200
    assert len(outcomes) > 20
