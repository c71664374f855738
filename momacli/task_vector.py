"""Write what fine-tuning added to a base: tau_t = theta_t - theta_0, one file per expert."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.arrays import parse_dtype
from momacli.checkpoint.blocks import block_size, bytes_to_read, read_blocks
from momacli.checkpoint.judging import read_head, rounded
from momacli.checkpoint.naming import choose_output, find_base, named_inputs
from momacli.checkpoint.plan import TASK_HEADS, Expert, MergePlan
from momacli.checkpoint.provenance import KEY, Recipe, record_input
from momacli.checkpoint.spans import spans
from momacli.checkpoint.staging import staged_file, staged_folder
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import ConflictError, UsageError
from momacli.models.inputs import Inputs, open_inputs
from momacli.progress import Listener, Notice, Progress, ignore

if TYPE_CHECKING:
    from momacli.statistics.geometry import Geometry

FOLDER = "task-vectors"
"""Default output: file stems are task names, so the files stand for their experts in a merge."""


@dataclass(frozen=True)
class TaskVector:
    """One task vector that was written, and what it looks like."""

    task: str
    output: Path
    norm: float  # Euclidean, over all tensors
    relative_norm: float  # to the base's over the same tensors
    sparsity: float  # share of entries that are exactly zero


@dataclass(frozen=True)
class Group:
    """The tensors of one layer, or of one module outside the layers."""

    name: str
    parameters: int
    norms: tuple[float, ...]  # of each task vector, over this group
    sparsities: tuple[float, ...]


@dataclass(frozen=True)
class TaskVectorReport:
    """What was written and how the task vectors lie to each other."""

    output: Path
    base: Path
    task_vectors: tuple[TaskVector, ...]
    groups: tuple[Group, ...]
    cosines: tuple[tuple[float | None, ...], ...]  # [T][T]; None where one of the two is zero
    tensors: int
    parameters: int
    skipped: tuple[str, ...]  # tensors of which no difference was taken: integers, excluded
    carried: int  # head tensors, of all tasks together
    nbytes: int  # of all tensors written
    seconds: float


def task_vector(
    base: str | Path,
    experts: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    dtype: str | None = None,
    exclude: Sequence[str] = (),
    heads: Sequence[str] = (),
    config: str | Path | None = None,
    force: bool = False,
    listener: Listener = ignore,
) -> TaskVectorReport:
    """Subtract the base from each expert; head tensors go along unchanged.

    A file so written may stand for its expert in `merge`, together with the base.

    experts: paths, or "NAME=PATH"; the base among them is passed over.
    output: a name in .safetensors is the file of a single expert, any other a folder of one
        file per expert; default `task-vectors/`.
    dtype: of the differences, default float32; also allows inputs of different types.
    exclude, heads, config, force: as in `merge`.

    Raises ConflictError listing all that does not fit, before any data is read, and other
    MomaErrors; nothing is written then.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        found_base, named = find_base(named_inputs(experts), base)
        config = Path(config) if config else None
        opened = open_inputs(stack, found_base, named, heads=heads, config=config)
        _refuse_task_vectors(opened.experts)
        plan = opened.plan(exclude, dtype)
        code = parse_dtype(dtype or "float32")
        plan = replace(plan, merged=tuple(replace(spec, dtype=code) for spec in plan.merged))
        target = _choose_output(output, opened, force=force)
        given = {"dtype": dtype or "float32", "exclude": list(exclude), "heads": list(heads)}
        job = _Job(plan, opened, target, {key: value for key, value in given.items() if value})
        report = job.report(job.run(listener))
        for remark in _remarks(report):
            listener(Notice(remark))
        return replace(report, seconds=time.monotonic() - started)


def _refuse_task_vectors(experts: Sequence[Expert]) -> None:
    already = [str(expert.checkpoint.path) for expert in experts if expert.is_task_vector]
    if already:
        raise ConflictError("these are task vectors already, expected experts", details=already)


def _choose_output(output: str | Path | None, inputs: Inputs, *, force: bool) -> Path:
    as_file = output is not None and Path(output).suffix == ".safetensors"
    if as_file and len(inputs.experts) > 1:
        raise UsageError(
            f"the output {output} is one file, but there are {len(inputs.experts)} experts",
            hint="name a folder; each task vector becomes a file in it",
        )
    return choose_output(output, FOLDER, inputs=inputs.paths, force=force, folder=not as_file)


@dataclass(frozen=True)
class _Job:
    """Task vectors of inputs that fit, and where they go."""

    plan: MergePlan
    inputs: Inputs
    target: Path
    parameters: Mapping[str, object]

    def run(self, listener: Listener) -> "dict[str, Geometry]":
        """Write all files; returns their geometry by layer."""
        with self._writers() as writers:
            geometry = self._differences(writers, listener)
            for writer, expert in zip(writers, self.plan.experts, strict=True):
                for own, key in expert.heads.items():
                    writer.append(_head_name(expert, own), read_head(expert, key))
                writer.replace_metadata(self._metadata(expert, digests=True))
        return geometry

    def _differences(
        self, writers: Sequence[CheckpointWriter], listener: Listener
    ) -> "dict[str, Geometry]":
        from momacli.checkpoint.arrays import as_tensor
        from momacli.statistics.geometry import Geometry, layer_of

        plan, sizes, read = self.plan, bytes_to_read(self.plan), 0.0
        geometry: dict[str, Geometry] = {}
        for checkpoint in plan.checkpoints:
            checkpoint.start_hash()
        for spec in plan.merged:
            geometry.setdefault(layer_of(spec.name), Geometry(len(plan.experts)))
        for span, block in read_blocks(plan, spans(plan.merged, block_size(plan))):
            name = span.spec.name
            taus = rounded(block.taus, span.spec)
            for writer, tau in zip(writers, taus, strict=True):
                writer.append(name, tau)
            geometry[layer_of(name)].add(as_tensor(taus), as_tensor(block.theta_0))
            read += sizes[name] * span.length / span.spec.elements
            listener(Progress("subtracting", round(read), sum(sizes.values()), "bytes"))
        return geometry

    @contextmanager
    def _writers(self) -> Iterator[list[CheckpointWriter]]:
        """One open file per expert; they appear, whole, when the block ends well."""
        with ExitStack() as stack:
            if self._is_file:
                places = [stack.enter_context(staged_file(self.target))]
            else:
                folder = stack.enter_context(staged_folder(self.target))
                places = [folder / _file_name(expert) for expert in self.plan.experts]
            writers = []
            for expert, place in zip(self.plan.experts, places, strict=True):
                specs = [*self.plan.merged, *_head_specs(expert)]
                metadata = self._metadata(expert, digests=False)
                writers.append(stack.enter_context(CheckpointWriter(place, specs, metadata)))
            yield writers

    @property
    def _is_file(self) -> bool:
        return self.target.suffix == ".safetensors"

    def _output_of(self, expert: Expert) -> Path:
        return self.target if self._is_file else self.target / _file_name(expert)

    def _metadata(self, expert: Expert, *, digests: bool) -> dict[str, str]:
        output = self._output_of(expert)
        config = self.inputs.configs.get(expert.name)
        recipe = Recipe(
            command="task-vector",
            parameters=self.parameters,
            base=record_input(self.plan.base, output, digests=digests),
            inputs=[record_input(expert.checkpoint, output, digests=digests)],
            heads=sorted(expert.heads),
            tasks=[expert.name],
            configs={} if config is None else {expert.name: config},
        )
        return {"format": "pt", KEY: recipe.encode()}

    def report(self, geometry: "Mapping[str, Geometry]") -> TaskVectorReport:
        from momacli.statistics.geometry import natural_order, total

        plan = self.plan
        whole = total(len(plan.experts), geometry.values())
        base_norm = whole.base_norm or 1.0
        vectors = [
            TaskVector(expert.name, self._output_of(expert), norm, norm / base_norm, sparsity)
            for expert, norm, sparsity in zip(
                plan.experts, whole.norms, whole.sparsities, strict=True
            )
        ]
        groups = [
            Group(name, geometry[name].size, geometry[name].norms, geometry[name].sparsities)
            for name in sorted(geometry, key=natural_order)
        ]
        heads = [spec for expert in plan.experts for spec in _head_specs(expert)]
        nbytes = sum(spec.nbytes for spec in plan.merged) * len(vectors)
        return TaskVectorReport(
            output=self.target,
            base=plan.base.path,
            task_vectors=tuple(vectors),
            groups=tuple(groups),
            cosines=whole.cosines,
            tensors=len(plan.merged),
            parameters=whole.size,
            skipped=tuple(sorted({*plan.left_out, *(spec.name for spec in plan.copied)})),
            carried=len(heads),
            nbytes=nbytes + sum(spec.nbytes for spec in heads),
            seconds=0.0,
        )


def _file_name(expert: Expert) -> str:
    return f"{expert.name}.safetensors"


def _head_name(expert: Expert, own: str) -> str:
    return f"{TASK_HEADS}{expert.name}.{own}"


def _head_specs(expert: Expert) -> list[TensorSpec]:
    entries = expert.checkpoint.entries
    return [
        TensorSpec(_head_name(expert, own), entries[key].dtype, entries[key].shape)
        for own, key in expert.heads.items()
    ]


def _remarks(report: TaskVectorReport) -> Iterator[str]:
    """What looks like a mistake in the choice of the inputs."""
    vectors = report.task_vectors
    for t, vector in enumerate(vectors):
        if vector.norm == 0:
            yield f"{vector.task} equals the base: its task vector is zero"
        elif vector.relative_norm > 1:
            yield (
                f"the task vector of {vector.task} is larger than the base itself: "
                "was it fine-tuned from another base?"
            )
        for s, other in enumerate(vectors[:t]):
            cosine = report.cosines[s][t]
            if cosine is not None and cosine > 1 - 1e-9 and other.norm == vector.norm:
                yield f"{other.task} and {vector.task} are the same model"
