"""The output of a merge: where it goes, of what form it is, and what is recorded in it."""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from momacli.checkpoint.blocks import bytes_to_read, read_head
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.joined_writer import JoinedWriter, joined_writer
from momacli.checkpoint.multitask_writer import (
    MultiTaskWriter,
    Sink,
    TaskPart,
    model_writer,
    multitask_writer,
)
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.provenance import Recipe, input_path, record_input, relative_path
from momacli.checkpoint.reader import Checkpoint, TensorFile
from momacli.checkpoint.sharded_writer import parse_size
from momacli.checkpoint.staging import staged_folder
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError, UsageError
from momacli.merging.prepare import Merging
from momacli.merging.ranks import Ranks
from momacli.models.layout import is_classifier, is_vision_tower
from momacli.progress import Listener, Notice, ignore
from momacli.recipes.computed import files_of, on_disk
from momacli.recipes.described import described_as, with_vocabulary
from momacli.recipes.steps import with_option
from momacli.statistics.suspicion import Suspicion

MAX_SHARD_SIZE = "50GB"
"""As transformers 5 has it: the largest single file that model hubs take."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or with dry_run would do."""

    output: Path
    method: str
    parameters: Mapping[str, Any]  # the method's, defaults included
    base: Path
    tasks: tuple[str, ...]
    merged: int  # tensors
    copied: tuple[str, ...]  # tensors taken from the base: integers and what was excluded
    carried: int  # head tensors, of all tasks together
    left_out: tuple[str, ...]  # tensors of experts that are not in the output
    base_head: tuple[str, ...]  # tensors of the base's own head, not in the output either
    merged_parameters: int
    nbytes: int  # of the output's tensors
    changed_share: float | None  # of the merged parameters, how many differ from the base
    seconds: float
    bytes_read: int  # of the tensors merged, in base and experts, once
    memory: int  # bytes: the process's peak, or with dry_run what to expect
    estimate: float | None = None  # with dry_run: seconds, where the method lets one tell
    stored_bits: int | None = None  # that tell the tasks apart, where the method makes one of each
    dry_run: bool = False


@dataclass(frozen=True)
class Writing:
    """Where the output goes and on what conditions, as `merge` explains them."""

    output: str | Path | None
    max_shard_size: str | None = None
    other_base: bool = False
    force: bool = False
    dry_run: bool = False
    listener: Listener = ignore
    started: float = field(default_factory=time.monotonic)

    @property
    def largest(self) -> int:
        """Bytes of the tensors of one file. Raises UsageError."""
        return parse_size(MAX_SHARD_SIZE if self.max_shard_size is None else self.max_shard_size)

    def finished(self, report: MergeReport, changed: float) -> MergeReport:
        """The report of what has been written."""
        report = replace(report, changed_share=changed, memory=_peak_memory(), estimate=None)
        return replace(report, seconds=time.monotonic() - self.started)


def write(merging: Merging, how: Writing) -> MergeReport:
    """Choose the output and write it, unless it is a dry run."""
    opened = merging.inputs
    if merging.each:
        return _write_each(merging, how)
    as_folder = _as_folder(how.output, merging)
    target = choose_output(
        how.output,
        "merged" if as_folder else "merged.safetensors",
        inputs=opened.paths,
        force=how.force,
        folder=as_folder,
    )
    if not how.other_base:
        _check_bases(opened.base, opened.experts)
    one_model = as_folder and _is_one_model(merging)
    if how.max_shard_size is not None and not one_model:
        raise UsageError(
            "--max-shard-size is for a folder of one model",
            hint="folders of classifiers share one encoder file, and a file is one file",
        )
    job = _Job(merging, _parts(merging), target, one_model, how.largest)
    if how.dry_run:
        return replace(job.report(), dry_run=True, seconds=time.monotonic() - how.started)
    return how.finished(job.report(), job.run(as_folder=as_folder, listener=how.listener))


def _write_each(merging: Merging, how: Writing) -> MergeReport:
    """Write a folder with a model of its own for each task: the method makes no merge of all."""
    if how.output is not None and Path(how.output).suffix == ".safetensors":
        raise UsageError(
            f"{merging.work.method.name} makes a model of every task, and {how.output} is one file",
            hint="name a folder with -o, or one task with --task",
        )
    opened = merging.inputs
    target = choose_output(how.output, "merged", inputs=opened.paths, force=how.force, folder=True)
    if not how.other_base:
        _check_bases(opened.base, opened.experts)
    as_folders = all(expert.checkpoint.is_folder for expert in opened.experts)
    suffix = "" if as_folders else ".safetensors"
    jobs = {
        name: _Job(one, _parts(one), target / name, as_folders, how.largest)
        for name, one in ((f"{task}{suffix}", one) for task, one in merging.each.items())
    }
    report = _joined([job.report() for job in jobs.values()], target, merging)
    if how.dry_run:
        return replace(report, dry_run=True, seconds=time.monotonic() - how.started)
    leads = Ranks.here().number == 0
    with staged_folder(target) if leads else nullcontext(target) as staged:
        shares = [
            replace(job, target=staged / name).run(as_folder=as_folders, listener=how.listener)
            for name, job in jobs.items()
        ]
    return how.finished(report, sum(shares) / len(shares))


def _joined(reports: Sequence[MergeReport], target: Path, merging: Merging) -> MergeReport:
    """One report of models that are each of a task."""
    estimates = [report.estimate for report in reports if report.estimate is not None]
    return replace(
        reports[0],
        output=target,
        parameters=merging.work.parameters,
        tasks=tuple(expert.name for expert in merging.inputs.tasks),
        carried=sum(report.carried for report in reports),
        nbytes=sum(report.nbytes for report in reports),
        estimate=sum(estimates) if estimates else None,
        stored_bits=sum(report.stored_bits or 0 for report in reports),
    )


def _peak_memory() -> int:
    """Bytes of memory this process has had at most, shared libraries included; 0 if unknown."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _as_folder(output: str | Path | None, merging: Merging) -> bool:
    """Whether the output is a folder, of one model a task, rather than one file."""
    inputs = merging.inputs
    if output is None:
        return all(expert.checkpoint.is_folder for expert in inputs.experts)
    if Path(output).suffix == ".safetensors":
        return False
    if merging.as_one_model:
        return True
    bare = [
        expert.name
        for expert in inputs.tasks
        if inputs.descriptions[expert.name] is None and not expert.checkpoint.is_folder
    ]
    if bare:
        raise UsageError(
            f"the output {output} is to be a folder of models, but nothing says what model "
            f"{', '.join(map(shown, bare))} is",
            hint="name a file, such as -o merged.safetensors, or give a config.json with --config",
        )
    return True


def _is_one_model(merging: Merging) -> bool:
    """Whether a folder holds a single model: none of the experts has anything of its own.

    Of classifiers and image encoders the tasks are kept apart even so: heads may follow.
    """
    inputs = merging.inputs
    if merging.as_one_model or merging.task is not None:
        return True
    if any(expert.heads for expert in inputs.tasks):
        return False
    configs = [
        item.config for item in (inputs.base_description, *inputs.descriptions.values()) if item
    ]
    kept_apart = any(is_classifier(config) or is_vision_tower(config) for config in configs)
    return bool(configs) and not kept_apart


def _check_bases(base: Checkpoint, experts: Sequence[Expert]) -> None:
    """Refuse task vectors of another base. Reads the base once, which hashes it for good."""
    details = []
    for expert in experts:
        origin = expert.vector_of.base if expert.vector_of else None
        if origin is None:
            continue
        expected, found = sorted(origin.files.values()), sorted(base.sha256().values())
        if expected != found:
            place = shown(str(input_path(origin, expert.checkpoint.path)))
            details.append(
                f"{expert.name}   taken from {place} (SHA-256 {shown(expected[0][:12])}…), "
                f"found {found[0][:12]}…"
            )
    if details:
        raise ConflictError(
            f"{base.path} is not the base these task vectors were taken from",
            details=details,
            hint="give that one with --base, or add them to this one deliberately with "
            "--other-base",
        )


def _parts(merging: Merging) -> list[TaskPart]:
    """What is each task's own in the output."""
    parts = []
    for expert in () if merging.as_one_model else merging.tasks:
        entries = expert.checkpoint.entries
        specs = [
            TensorSpec(own, entries[key].dtype, entries[key].shape)
            for own, key in expert.heads.items()
        ]
        parts.append(TaskPart(expert.name, specs, merging.inputs.descriptions[expert.name]))
    return parts


def said_of_itself(merging: Merging, place: Path) -> tuple[Recipe, Sequence[TaskPart]]:
    """What an output at `place` says of itself: its recipe, and the description of each part."""
    one_model = place.is_dir() and _is_one_model(merging)
    job = _Job(merging, _parts(merging), place, one_model, 0)
    return job.recipe(digests=True), [job.whole()] if one_model else job.parts


def compute(merging: Merging, sink: Sink, listener: Listener) -> int:
    """Hand all tensors of the output to `sink`; returns how many merged values changed."""
    seen = Suspicion(len(merging.work.plan.experts))
    changed = _compute_merged(merging, sink, listener, seen)
    _hand_over_the_rest(merging, sink)
    _say(merging, seen, listener)
    return changed


def _compute_merged(
    merging: Merging,
    sink: Sink | JoinedWriter,
    listener: Listener,
    seen: Suspicion,
    share: Sequence[TensorSpec] | None = None,
) -> int:
    changed = 0
    for part in merging.work.parts(listener, seen, share):
        sink.append(part.name, part.values)
        changed += part.changed
    return changed


def _say(merging: Merging, seen: Suspicion, listener: Listener) -> None:
    plan = merging.work.plan
    remarks = [*seen.remarks([shown(expert.name) for expert in plan.experts])]
    for remark in remarks + (plan.tolerated.remarks() if plan.tolerated else []):
        listener(Notice(remark))


def _hand_over_the_rest(merging: Merging, sink: Sink) -> None:
    """What is not merged: tensors of the base, and the heads."""
    plan = merging.work.plan
    for spec in plan.copied:
        sink.append(spec.name, plan.base.read_array(spec.name))
    for expert in merging.tasks:
        for own, key in expert.heads.items():
            sink.append_head(expert.name, own, read_head(expert, key, plan.tolerated))


def _input_files(merging: Merging) -> list[TensorFile]:
    """All files that are read, each once, in an order that is always the same."""
    plan = merging.work.plan
    checkpoints = (plan.base, *(expert.checkpoint for expert in plan.experts))
    leaves = [leaf for checkpoint in checkpoints for leaf in files_of(checkpoint)]
    return list(dict.fromkeys(file for leaf in leaves for file in leaf.files))


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


@dataclass(frozen=True)
class _Job:
    """A merge, and where it goes."""

    merging: Merging
    parts: Sequence[TaskPart]
    target: Path
    one_model: bool  # the output is a folder of one model
    largest: int  # bytes of the tensors of one of its files

    def report(self) -> MergeReport:
        from momacli.methods._reconstruction import Reconstruction

        work, inputs = self.merging.work, self.merging.inputs
        plan = work.plan
        heads = [spec for part in self.parts for spec in part.heads]
        return MergeReport(
            output=self.target,
            method=work.method.name,
            parameters=work.parameters,
            base=plan.base.path,
            tasks=tuple(expert.name for expert in inputs.tasks),
            merged=len(plan.merged),
            copied=tuple(spec.name for spec in plan.copied),
            carried=len(heads),
            left_out=plan.left_out,
            base_head=inputs.base_heads,
            merged_parameters=sum(spec.elements for spec in plan.merged),
            nbytes=sum(spec.nbytes for spec in [*plan.merged, *plan.copied, *heads]),
            changed_share=None,
            seconds=0.0,
            bytes_read=sum(bytes_to_read(plan).values()),
            memory=work.expected_memory,
            estimate=work.expected_seconds,
            stored_bits=work.stored_bits(1) if isinstance(work, Reconstruction) else None,
        )

    def run(self, *, as_folder: bool, listener: Listener) -> float:
        """Write the output; returns the share of merged parameters that changed."""
        plan = self.merging.work.plan
        ranks = Ranks.here()
        if ranks.number:
            changed = self._join(ranks, listener)
        else:
            with self._writer(as_folder) as writer:
                if ranks.count == 1:
                    changed = compute(self.merging, writer, listener)
                else:
                    changed = self._lead(ranks, writer, listener)
                writer.finish(self.recipe(digests=True))
        return changed / max(1, sum(spec.elements for spec in plan.merged))

    def _lead(self, ranks: Ranks, writer: MultiTaskWriter, listener: Listener) -> int:
        """Compute a share; let the other processes put theirs in the same files."""
        plan = self.merging.work.plan
        ranks.from_first(writer.files())
        seen, own = Suspicion(len(plan.experts)), ranks.share(plan.merged)
        changed = _compute_merged(self.merging, writer, listener, seen, own)
        _hand_over_the_rest(self.merging, writer)
        known = {spec.name for spec in own}
        found = ranks.all_of(_Found.of(self.merging, ranks, changed, seen))
        writer.leave_to_others(spec.name for spec in plan.merged if spec.name not in known)
        files = _input_files(self.merging)
        for other in found[1:]:
            seen.join(other.seen)
            if plan.tolerated and other.tolerated:
                plan.tolerated.join(other.tolerated)
            for number, digest in other.digests.items():
                files[number].take_digest(digest)
        _say(self.merging, seen, listener)
        return sum(each.changed for each in found)

    def _join(self, ranks: Ranks, listener: Listener) -> int:
        """Compute a share, and put it in the files that the first process has made."""
        plan = self.merging.work.plan
        files: list[Path] = ranks.from_first(None)
        seen = Suspicion(len(plan.experts))
        with joined_writer(files) as writer:
            own = ranks.share(plan.merged)
            changed = _compute_merged(self.merging, writer, listener, seen, own)
        return sum(
            each.changed for each in ranks.all_of(_Found.of(self.merging, ranks, changed, seen))
        )

    def _writer(self, as_folder: bool) -> AbstractContextManager[MultiTaskWriter]:
        plan = self.merging.work.plan
        specs, recipe = [*plan.merged, *plan.copied], self.recipe(digests=False)
        if self.one_model:
            whole = self.whole()
            return model_writer(self.target, specs, whole, recipe, largest=self.largest)
        return multitask_writer(self.target, specs, self.parts, recipe, as_folder=as_folder)

    def whole(self) -> TaskPart:
        """The only part of a folder of one model."""
        plan, inputs = self.merging.work.plan, self.merging.inputs
        found = inputs.base_description or next(iter(inputs.descriptions.values()), None)
        part = self.parts[0] if self.merging.task is not None else TaskPart("", [], found)
        description = described_as(part.description, self.merging.selection["dtype"])
        return replace(part, description=with_vocabulary(description, plan))

    def recipe(self, *, digests: bool) -> Recipe:
        """How the output is made; without `digests`, placeholders of the same length."""
        work, inputs = self.merging.work, self.merging.inputs
        parameters = {"method": work.method.name, **work.parameters}
        parameters |= {key: value for key, value in self.merging.selection.items() if value}
        if self.merging.config is not None:
            parameters["config"] = relative_path(self.merging.config, self.target)
        if self.merging.recorded:
            steps, files = self.merging.recorded
            if self.merging.task is not None:
                steps = with_option(steps, "task", self.merging.task)
            inputs_of_steps = [record_input(f, self.target, digests=digests) for f in files]
            parameters |= {"recipe": steps, "files": [asdict(item) for item in inputs_of_steps]}
        base = on_disk(work.plan.base)
        experts = [] if self.merging.as_one_model else inputs.tasks
        tasks = [] if self.merging.as_one_model else self.merging.tasks
        return Recipe(
            command="merge",
            parameters=parameters,
            base=None if base is None else record_input(base, self.target, digests=digests),
            inputs=[
                record_input(
                    expert.checkpoint,
                    self.target,
                    digests=digests,
                    task_vector=expert.is_task_vector,
                )
                for expert in experts
            ],
            heads=sorted({own for expert in tasks for own in expert.heads}),
            tasks=[expert.name for expert in tasks],
            configs={
                expert.name: config
                for expert in tasks
                if (config := inputs.configs.get(expert.name)) is not None
            },
        )
