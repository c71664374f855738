"""The same tensors under names that differ by a common prefix: `bert.`, `vision_model.`, `module.`.

Which wrapper a model was saved in decides the prefix. Only one prefix for all tensors of a
file is ever added or taken away; everything else that does not match is a conflict.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.reader import Checkpoint

MAX_PARTS = 8
"""Parts of the longest prefix that is looked for, which bounds the time names can take."""


class RenamedCheckpoint(Checkpoint):
    """An open checkpoint whose tensors go by other names; its files are those of the original."""

    def __init__(self, original: Checkpoint, names: Mapping[str, str], change: str):
        """names: the new name of each tensor that gets one. change: the same for people."""
        super().__init__(original.path, original.name, ())
        self.files = original.files
        self.change = change
        self._where = {
            names.get(key, key): (file, entry._replace(name=names.get(key, key)))
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
    names, wanted = frozenset(names), frozenset(wanted)
    as_they_are = len(names & wanted)
    votes: Counter[str] = Counter()
    for sign, long, short in (("+", wanted, names), ("-", names, wanted)):
        for name in long:
            rest = name
            for _ in range(MAX_PARTS):
                rest = rest.partition(".")[2]
                if "." in rest and rest in short:
                    votes[sign + name[: -len(rest)]] += 1
    if not votes:
        return ""
    (best, count), *others = votes.most_common(2)
    unique = not others or others[0][1] < count
    half = min(len(names), len(wanted)) / 2
    return best if unique and count > as_they_are and count >= half else ""
