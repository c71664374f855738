"""Write an aligned model with what was fitted, and see that it does what was fitted."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from momacli.alignment.adapted import Answers, adapters_beside
from momacli.alignment.alignment import alignment_of, write_alignment
from momacli.alignment.encoding import TaskData
from momacli.alignment.folding import AbsorbReport, record_merged, write_absorbed
from momacli.alignment.inputs import Inputs
from momacli.alignment.outcome import CHECKED, Outcome
from momacli.alignment.report import TaskReport
from momacli.alignment.samples import reader
from momacli.checkpoint.hashed_file import HashedFile
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.provenance import Recipe, record_input
from momacli.checkpoint.staging import staged_file
from momacli.models.families import open_classifier
from momacli.progress import Notice


def recipe_of(inputs: Inputs) -> Recipe:
    """Record everything that an alignment is fitted to; the settings are to be added."""
    return Recipe(
        command="align",
        parameters={"merge": dict(inputs.recipe.parameters)},
        base=record_input(inputs.base, inputs.alignment, digests=True),
        inputs=[
            record_input(
                one.checkpoint,
                inputs.alignment,
                digests=True,
                task_vector=one.is_task_vector,
            )
            for one in inputs.experts.values()
        ],
        heads=inputs.recipe.heads,
        tasks=inputs.recipe.tasks,
        configs=inputs.recipe.configs,
        merged=record_merged(inputs.model, inputs.alignment),
    )


def write_aligned(inputs: Inputs, outcome: Outcome, recipe: Recipe, layer: str) -> AbsorbReport:
    """Write the aligned model and what was fitted, both or neither.

    In a folder the latter is one of its files; a file has it beside.

    layer: of the heads, the one that takes the features.
    """
    alignment = alignment_of(
        outcome.transforms,
        outcome.masks,
        headroom=outcome.headroom,
        layer=layer,
        recipe=recipe,
        place=inputs.alignment,
        heads=outcome.heads,
        adapters=outcome.adapters,
        measures=_achieved(outcome),
    )
    digests: list[str] = []

    def write(path: Path) -> None:
        write_alignment(path, alignment, outcome.masks)
        with closing(HashedFile(path)) as written:
            digests.append(written.sha256())

    arguments = (inputs.model, alignment, inputs.base, inputs.target)
    if inputs.model.path.is_dir():
        return write_absorbed(
            *arguments,
            digest=digests.pop,
            extras={inputs.alignment.name: write},
            metrics={task: _measures(one) for task, one in outcome.reports.items()},
            listener=inputs.listener,
        )
    with staged_file(inputs.alignment) as staged:
        write(staged)
        return write_absorbed(*arguments, digest=digests.pop, listener=inputs.listener)


def _achieved(outcome: Outcome) -> dict[str, object]:
    """What the alignment's file tells; no time, for the same command gives the same bytes."""
    tasks = {task: asdict(one) for task, one in outcome.reports.items()}
    for one in tasks.values():
        del one["logit_difference"]  # not known before the model is written
    return {"steps": outcome.steps, "masked_share": outcome.masked_share, "tasks": tasks}


def _measures(report: TaskReport) -> dict[str, float]:
    """What a model card tells."""
    return {
        "samples": report.samples,
        "cosine to the fine-tuned features, before": report.cosine_before,
        "cosine to the fine-tuned features, after": report.cosine_after,
        "objective, before": report.objective_before,
        "objective, after": report.objective_after,
    }


@torch.no_grad()
def differences(
    inputs: Inputs, tasks: Mapping[str, TaskData], outcome: Outcome
) -> dict[str, float]:
    """Load what was written and compare its logits with those of what was fitted, per task."""
    found = {}
    with MultiTask.open(inputs.target) as written:
        adapters = adapters_beside(written)
        for name, task in tasks.items():
            model = written.tasks[name]
            assert model.description is not None
            network = open_classifier(
                model.description.config,
                model.entries,
                heads=inputs.recipe.heads,
                device=inputs.device,
            )
            network.load(reader(model), model.keys, source=str(inputs.target))
            answer = Answers(network, model, adapters.tasks[name] if adapters else None)
            logits, _ = answer(task.batch(torch.arange(min(CHECKED, task.count))))
            found[name] = float((logits.float() - outcome.logits[name]).abs().max())
    worst = max(found.values())
    if worst > 1e-2:
        inputs.listener(
            Notice(f"logits of {inputs.target} differ by {worst:.1e} from the aligned ones")
        )
    return found
