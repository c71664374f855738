"""The output of a merge: where it goes, of what form it is, and that it may be written."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.naming import choose_output, refuse_special
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.provenance import input_path
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.sharded_writer import parse_size
from momacli.checkpoint.staging import staged_folder
from momacli.errors import ConflictError, UsageError
from momacli.merging.job import Job, is_one_model, parts_of
from momacli.merging.prepare import Merging
from momacli.merging.ranks import Ranks
from momacli.merging.report import MergeReport, peak_memory
from momacli.progress import Listener, ignore

MAX_SHARD_SIZE = "50GB"
"""As transformers 5 has it: the largest single file that model hubs take."""


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
        report = replace(report, changed_share=changed, memory=peak_memory(), estimate=None)
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
    one_model = as_folder and is_one_model(merging)
    if how.max_shard_size is not None and not one_model:
        raise UsageError(
            "--max-shard-size is for a folder of one model",
            hint="folders of classifiers share one encoder file, and a file is one file",
        )
    job = Job(merging, parts_of(merging), target, one_model, how.largest)
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
        name: Job(one, parts_of(one), target / name, as_folders, how.largest)
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


def _as_folder(output: str | Path | None, merging: Merging) -> bool:
    """Whether the output is a folder, of one model a task, rather than one file."""
    inputs = merging.inputs
    if output is None:
        return all(expert.checkpoint.is_folder for expert in inputs.experts)
    refuse_special(Path(output))
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
