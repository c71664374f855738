"""The same tensors under names that differ by a common prefix: `bert.`, `vision_model.`, `module.`.

Which wrapper a model was saved in decides the prefix. Only one prefix for all tensors of a
file is ever added or taken away. Besides, BERT's first files, still published, call weight and
bias of a LayerNorm gamma and beta. Everything else that does not match is a conflict.
"""

from collections import Counter
from collections.abc import Collection, Mapping

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.reader import Checkpoint

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_NEW = {new: old for old, new in _OLD.items()}

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

    Names of LayerNorm's weights are brought to those wanted before.

    wanted: the names that other checkpoints have. The checkpoint itself is returned where more
    of its names match as they are.
    """
    checkpoint = _with_norms_as(checkpoint, wanted)
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
    if clash:
        return checkpoint
    if isinstance(checkpoint, RenamedCheckpoint):
        change = f"{checkpoint.change}; {change}"
    return RenamedCheckpoint(checkpoint, names, change)


def _with_norms_as(checkpoint: Checkpoint, wanted: Collection[str]) -> Checkpoint:
    """The checkpoint with gamma and beta as weight and bias, or the other way, as is wanted."""
    for names, others in ((_OLD, _NEW), (_NEW, _OLD)):
        own = {key: _ending(key) for key in checkpoint.entries if _ending(key) in names}
        there = {_ending(key) for key in wanted}
        if own and there & set(others) and not there & set(names):
            renamed = {key: key.removesuffix(end) + names[end] for key, end in own.items()}
            old, new = next(iter(names)), next(iter(others))
            return RenamedCheckpoint(checkpoint, renamed, f"{old} goes by {new}, and so its bias")
    return checkpoint


def _ending(key: str) -> str:
    return ".".join(key.rsplit(".", 2)[-2:])


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
