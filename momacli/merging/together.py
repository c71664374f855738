"""One merge by several processes: each computes a share, the first one writes all the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.joined_writer import joined_writer
from momacli.checkpoint.multitask_writer import MultiTaskWriter
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.reader import TensorFile
from momacli.merging.computing import compute_merged, hand_over_the_rest, say_what_was_seen
from momacli.merging.prepare import Merging
from momacli.merging.ranks import Ranks
from momacli.progress import Listener
from momacli.recipes.computed import files_of
from momacli.statistics.suspicion import Suspicion


def lead(merging: Merging, ranks: Ranks, writer: MultiTaskWriter, listener: Listener) -> int:
    """Compute a share; let the other processes put theirs in the same files."""
    plan = merging.work.plan
    ranks.from_first(writer.files())
    seen, own = Suspicion(len(plan.experts)), ranks.share(plan.merged)
    changed = compute_merged(merging, writer, listener, seen, own)
    hand_over_the_rest(merging, writer)
    known = {spec.name for spec in own}
    found = ranks.all_of(_Found.of(merging, ranks, changed, seen))
    writer.leave_to_others(spec.name for spec in plan.merged if spec.name not in known)
    files = _input_files(merging)
    for other in found[1:]:
        seen.join(other.seen)
        if plan.tolerated and other.tolerated:
            plan.tolerated.join(other.tolerated)
        for number, digest in other.digests.items():
            files[number].take_digest(digest)
    say_what_was_seen(merging, seen, listener)
    return sum(each.changed for each in found)


def join(merging: Merging, ranks: Ranks, listener: Listener) -> int:
    """Compute a share, and put it in the files that the first process has made."""
    plan = merging.work.plan
    files: list[Path] = ranks.from_first(None)
    seen = Suspicion(len(plan.experts))
    with joined_writer(files) as writer:
        own = ranks.share(plan.merged)
        changed = compute_merged(merging, writer, listener, seen, own)
    return sum(each.changed for each in ranks.all_of(_Found.of(merging, ranks, changed, seen)))


@dataclass(frozen=True)
class _Found:
    """What one of several processes tells the others."""

    changed: int
    seen: Suspicion
    tolerated: Tolerated | None
    digests: Mapping[int, str]  # of input files, by their number

    @classmethod
    def of(cls, merging: Merging, ranks: Ranks, changed: int, seen: Suspicion) -> "_Found":
        """Hash this process's part of the input files."""
        files = list(enumerate(_input_files(merging)))[ranks.number :: ranks.count]
        digests = {number: file.sha256() for number, file in files}
        return cls(changed, seen, merging.work.plan.tolerated, digests)


def _input_files(merging: Merging) -> list[TensorFile]:
    """All files that are read, each once, in an order that is always the same."""
    plan = merging.work.plan
    leaves = [leaf for checkpoint in plan.checkpoints for leaf in files_of(checkpoint)]
    return list(dict.fromkeys(file for leaf in leaves for file in leaf.files))
