"""A merge with its place: what is written there, and what it says of itself."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from momacli.checkpoint.blocks import bytes_to_read
from momacli.checkpoint.multitask_writer import (
    MultiTaskWriter,
    TaskPart,
    model_writer,
    multitask_writer,
)
from momacli.checkpoint.provenance import Recipe, record_input, relative_path
from momacli.checkpoint.writer import TensorSpec
from momacli.merging.computing import compute_draft
from momacli.merging.prepare import Merging
from momacli.merging.ranks import Ranks
from momacli.merging.report import MergeReport
from momacli.merging.together import join, lead
from momacli.models.layout import is_classifier, is_vision_tower
from momacli.progress import Listener
from momacli.recipes.computed import on_disk
from momacli.recipes.described import described_as, with_vocabulary
from momacli.recipes.steps import with_option


@dataclass(frozen=True)
class Job:
    """A merge, and where it goes."""

    merging: Merging
    parts: Sequence[TaskPart]
    target: Path
    one_model: bool  # the output is a folder of one model
    largest: int  # bytes of the tensors of one of its files

    def report(self) -> MergeReport:
        """What will be written, as far as it is known before."""
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
            changed = join(self.merging, ranks, listener)
        else:
            with self._writer(as_folder) as writer:
                if ranks.count == 1:
                    changed = compute_draft(self.merging, writer, listener)
                else:
                    changed = lead(self.merging, ranks, writer, listener)
                writer.finish(self.recipe(digests=True))
        return changed / max(1, sum(spec.elements for spec in plan.merged))

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


def parts_of(merging: Merging) -> list[TaskPart]:
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


def is_one_model(merging: Merging) -> bool:
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


def said_of_itself(merging: Merging, place: Path) -> tuple[Recipe, Sequence[TaskPart]]:
    """What an output at `place` says of itself: its recipe, and the description of each part."""
    one_model = place.is_dir() and is_one_model(merging)
    job = Job(merging, parts_of(merging), place, one_model, 0)
    return job.recipe(digests=True), [job.whole()] if one_model else job.parts
