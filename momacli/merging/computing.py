"""The tensors of an output, computed or copied one after another."""

from collections.abc import Sequence

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.joined_writer import JoinedWriter
from momacli.checkpoint.judging import read_head
from momacli.checkpoint.multitask_writer import Draft, Sink
from momacli.checkpoint.writer import TensorSpec
from momacli.merging.prepare import Merging
from momacli.progress import Listener, Notice
from momacli.statistics.suspicion import Suspicion


def compute(merging: Merging, sink: Sink, listener: Listener) -> int:
    """Hand all tensors of the output to `sink`; returns how many merged values changed."""
    seen = Suspicion(len(merging.work.plan.experts))
    changed = compute_merged(merging, sink, listener, seen)
    hand_over_the_rest(merging, sink)
    say_what_was_seen(merging, seen, listener)
    return changed


def compute_draft(merging: Merging, draft: Draft, listener: Listener) -> int:
    """The same for a sink whose values can be replaced, which may save a pass over the inputs."""
    seen = Suspicion(len(merging.work.plan.experts))
    changed = 0
    for part in merging.work.draft(listener, seen):
        if part.replaces is None:
            draft.append(part.name, part.values)
        else:
            draft.replace(part.name, part.replaces, part.values)
        changed += part.changed
    hand_over_the_rest(merging, draft)
    say_what_was_seen(merging, seen, listener)
    return changed


def compute_merged(
    merging: Merging,
    sink: Sink | JoinedWriter,
    listener: Listener,
    seen: Suspicion,
    share: Sequence[TensorSpec] | None = None,
) -> int:
    """Hand the merged tensors, or those of `share`, to `sink`; returns how many values changed."""
    changed = 0
    for part in merging.work.parts(listener, seen, share):
        sink.append(part.name, part.values)
        changed += part.changed
    return changed


def say_what_was_seen(merging: Merging, seen: Suspicion, listener: Listener) -> None:
    """Tell what is suspicious about the experts, and which values were tolerated."""
    plan = merging.work.plan
    remarks = [*seen.remarks([shown(expert.name) for expert in plan.experts])]
    for remark in remarks + (plan.tolerated.remarks() if plan.tolerated else []):
        listener(Notice(remark))


def hand_over_the_rest(merging: Merging, sink: Sink) -> None:
    """What is not merged: tensors of the base, and the heads."""
    plan = merging.work.plan
    for spec in plan.copied:
        for part in plan.base.read_in_parts(spec.name):
            sink.append(spec.name, part)
    for expert in merging.tasks:
        for own, key in expert.heads.items():
            sink.append_head(expert.name, own, read_head(expert, key, plan.tolerated))
