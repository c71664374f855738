"""The same tensors under names that differ by a common prefix: `bert.`, `vision_model.`, `module.`.

Which wrapper a model was saved in decides the prefix. Only one prefix for all tensors of a
file is ever added or taken away; everything else that does not match is a conflict.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.reader import Checkpoint


class RenamedCheckpoint(Checkpoint):
    """An open checkpoint whose tensors go by other names; its files are those of the original."""

    def __init__(self, original: Checkpoint, names: Mapping[str, str], change: str):
        """names: the new name of each tensor that gets one. change: the same for people."""
        super().__init__(original.path, original.name, ())
        self.files = original.files
        self.change = change
        self._where = {
            names.get(key, key): (file, replace(entry, name=names.get(key, key)))
            for key, (file, entry) in original._where.items()
        }


def under_names_of(checkpoint: Checkpoint, wanted: Collection[str]) -> Checkpoint:
    """The checkpoint with a prefix added to its names or taken away, if that makes them match.

    wanted: the names that other checkpoints have. The checkpoint itself is returned where more
    of its names match as they are.
    """
    prefix = common_prefix(checkpoint.entries, wanted)
    if not prefix:
        return checkpoint
    names = {}
    for key in checkpoint.entries:
        if prefix[0] == "+" and key not in wanted and prefix[1:] + key in wanted:
            names[key] = prefix[1:] + key
        elif prefix[0] == "-" and key.removeprefix(prefix[1:]) in wanted:
            names[key] = key.removeprefix(prefix[1:])
    if prefix[0] == "+":
        rest = [key for key in checkpoint.entries if key not in names and key not in wanted]
        top = {key.split(".", 1)[0] for key in names}
        names |= {key: prefix[1:] + key for key in rest if key.split(".", 1)[0] in top}
    clash = set(names.values()) & (set(checkpoint.entries) - set(names))
    what = ("put before", "taken from")[prefix[0] == "-"]
    change = f"{shown(prefix[1:])!r} is {what} the names of {len(names)} tensors"
    return checkpoint if clash else RenamedCheckpoint(checkpoint, names, change)


def common_prefix(names: Collection[str], wanted: Collection[str]) -> str:
    """The prefix by which most names differ from those wanted: "+bert.", "-module.", or ""."""
    as_they_are = sum(name in wanted for name in names)
    votes: Counter[str] = Counter()
    endings: dict[str, list[str]] = {}
    for name in wanted:
        endings.setdefault(_last(name), []).append(name)
    for name in names:
        for other in endings.get(_last(name), ()):
            if other.endswith("." + name):
                votes["+" + other[: -len(name)]] += 1
            elif name.endswith("." + other):
                votes["-" + name[: -len(other)]] += 1
    if not votes:
        return ""
    (best, count), *others = votes.most_common(2)
    unique = not others or others[0][1] < count
    half = min(len(names), len(wanted)) / 2
    return best if unique and count > as_they_are and count >= half else ""


def _last(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])
