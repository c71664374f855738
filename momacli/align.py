"""Align a merged model with its experts' heads from unlabeled data, at the original size."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.absorb import AbsorbReport, record_merged, write_absorbed
from momacli.alignment.settings import Settings
from momacli.checkpoint.hashed_file import HashedFile
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.provenance import Recipe, record_input
from momacli.checkpoint.staging import staged_file
from momacli.data.reading import Reading
from momacli.errors import ModelError, UsageError
from momacli.progress import Listener, Notice, ignore

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.alignment.alignment import Alignment
    from momacli.alignment.fit import Fitted, TaskData
    from momacli.alignment.inputs import Inputs
    from momacli.data.features import FeatureCache
    from momacli.data.folders import Data


@dataclass(frozen=True)
class TaskReport:
    """What alignment did for one task, on its unlabeled samples."""

    samples: int
    objective_before: float
    objective_after: float
    cosine_before: float  # mean of cos(merged, fine-tuned) (paper, section 3.4)
    cosine_after: float
    coefficient_before: float
    coefficient_after: float
    orthogonality_error: float  # max |A^T A - I|
    logit_difference: float  # written model against W A g(x) + b, on a real batch


@dataclass(frozen=True)
class AlignReport:
    """What an alignment achieved and where it is."""

    output: Path
    alignment: Path
    tasks: Mapping[str, TaskReport]
    settings: Mapping[str, Any]
    headroom: float
    masked_share: float
    steps: int
    parameters: Mapping[str, int]  # of each task's model: as many as it had before
    device: str
    seconds: float
    dry_run: bool = False


def align(
    merged: str | Path | None = None,
    *,
    data: "Data",
    settings: Settings | None = None,
    reading: Reading | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    base: str | Path | None = None,
    config: str | Path | None = None,
    pooling: str | None = None,
    features: str | None = None,
    cache: str | Path | None = None,
    checkpoint_every: int = 100,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> AlignReport:
    """Fit mask and transforms to unlabeled samples and write the absorbed model.

    merged: a file or folder that `merge` wrote; default `merged/` or `merged.safetensors`.
    data: a folder with one sub-folder or text file of samples per task, "TASK=PATH", or several.
    reading: which samples are used, and where they are in the files.
    pooling: what makes one vector of an encoder's output: "cls", "pooler", "mean" or
        "masked-mean"; by default what the checkpoint says.
    features: dotted path of the module whose output is meant, where it is not the encoder's.
    output: default `aligned/`, with the alignment itself in `aligned/alignment.safetensors`,
        or `aligned.safetensors` with `aligned.alignment.safetensors` beside it.
    cache: folder of fine-tuned features, default ~/.cache/moma.
    checkpoint_every: steps after which the state is kept beside the output, so that the same
        call goes on where a run was stopped; 0 keeps it only when the run is interrupted.

    Raises MomaErrors before any work where inputs do not fit, and DivergenceError if a loss is
    not finite; nothing is written then.
    """
    from momacli.alignment.inputs import default_input, open_inputs
    from momacli.data.features import FeatureCache, default_cache

    started = time.monotonic()
    with ExitStack() as stack:
        inputs = open_inputs(
            stack,
            Path(merged) if merged is not None else default_input("align"),
            data,
            device=device,
            output=output,
            base=base,
            config=Path(config) if config else None,
            pooling=pooling,
            features=features,
            force=force,
            listener=listener,
        )
        settings = settings or Settings()
        report = AlignReport(
            output=inputs.target,
            alignment=inputs.alignment,
            tasks={},
            settings=asdict(settings),
            headroom=1.0,
            masked_share=0.0,
            steps=0,
            parameters={task: _parameters(one) for task, one in inputs.model.tasks.items()},
            device=str(inputs.device),
            seconds=0.0,
            dry_run=dry_run,
        )
        if not dry_run:
            kept = FeatureCache(Path(cache) if cache else default_cache(), listener=listener)
            report = _run(inputs, report, settings, reading or Reading(), kept, checkpoint_every)
        return replace(report, seconds=time.monotonic() - started)


def _run(
    inputs: "Inputs",
    report: AlignReport,
    settings: Settings,
    reading: Reading,
    cache: "FeatureCache",
    checkpoint_every: int,
) -> AlignReport:
    from momacli.alignment.alignment import alignment_of
    from momacli.alignment.fit import fit_alignment
    from momacli.alignment.headroom import find_headroom
    from momacli.alignment.resume import Keeper, state_key
    from momacli.alignment.samples import open_network, prepare_tasks, reader

    classifier = open_network(inputs)
    tasks = prepare_tasks(inputs, classifier, reading, cache)
    _check_absorbable(settings, tasks)
    headroom = find_headroom(inputs, settings)
    classifier.load_encoder(reader(inputs.first))
    merged = record_merged(inputs.model, inputs.alignment)
    keeper = Keeper(
        inputs.target.with_name(f"{inputs.target.stem}.state.safetensors"),
        state_key(
            settings, merged.files, [task.finetuned for task in tasks], inputs.recipe.configs
        ),
        every=checkpoint_every,
        listener=inputs.listener,
    )
    fitted = fit_alignment(
        classifier,
        lambda key: inputs.base.read(key),
        tasks,
        settings,
        headroom=headroom,
        keeper=keeper,
        listener=inputs.listener,
    )
    recipe = Recipe(
        command="align",
        parameters={"merge": dict(inputs.recipe.parameters), **asdict(settings)},
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
        merged=merged,
    )
    alignment = alignment_of(
        {task.task: A for task, A in zip(tasks, fitted.transforms, strict=True)},
        fitted.masks,
        headroom=fitted.headroom,
        layer=classifier.head_name,
        recipe=recipe,
        place=inputs.alignment,
    )
    reports = _task_reports(tasks, fitted)
    absorbed = _write(inputs, alignment, fitted.masks, reports)
    keeper.discard()
    if absorbed.parameters_after != absorbed.parameters_before:
        raise ModelError(f"{inputs.target} does not have as many parameters as the merged model")
    differences = _verify(inputs, tasks, fitted)
    return replace(
        report,
        tasks={t: replace(one, logit_difference=differences[t]) for t, one in reports.items()},
        headroom=fitted.headroom,
        masked_share=fitted.masked_share,
        steps=fitted.steps,
        parameters=absorbed.parameters_after,
    )


def _write(
    inputs: "Inputs",
    alignment: "Alignment",
    masks: "Mapping[str, Tensor]",
    reports: Mapping[str, TaskReport],
) -> AbsorbReport:
    """Write the aligned model and the alignment, both or neither.

    In a folder the alignment is one of its files; a file has it beside.
    """
    from momacli.alignment.alignment import write_alignment

    digests: list[str] = []

    def write(path: Path) -> None:
        write_alignment(path, alignment, masks)
        with closing(HashedFile(path)) as written:
            digests.append(written.sha256())

    metrics = {
        task: {
            "samples": one.samples,
            "cosine to the fine-tuned features, before": one.cosine_before,
            "cosine to the fine-tuned features, after": one.cosine_after,
            "objective, before": one.objective_before,
            "objective, after": one.objective_after,
        }
        for task, one in reports.items()
    }
    arguments = (inputs.model, alignment, inputs.base, inputs.target)
    if inputs.model.path.is_dir():
        extras = {inputs.alignment.name: write}
        return write_absorbed(
            *arguments,
            digest=digests.pop,
            extras=extras,
            metrics=metrics,
            listener=inputs.listener,
        )
    with staged_file(inputs.alignment) as staged:
        write(staged)
        return write_absorbed(*arguments, digest=digests.pop, listener=inputs.listener)


def _check_absorbable(settings: Settings, tasks: Sequence["TaskData"]) -> None:
    """Refuse transforms that change lengths where heads normalise what they take.

    W (A z / |A z|) is (W A) z/|z| only for orthogonal A.
    """
    if settings.transform in ("similarity", "scaling", "linear") and any(
        task.head.before is not None for task in tasks
    ):
        raise UsageError(
            f"--transform {settings.transform} cannot be folded into heads that normalise their "
            "features",
            hint="with such heads, as of CLIP, only orthogonal transforms keep what was fitted",
        )


def _verify(inputs: "Inputs", tasks: Sequence["TaskData"], fitted: "Fitted") -> dict[str, float]:
    """Load the written model and compare its logits with W A g(x; theta_m) + b, per task."""
    import torch

    from momacli.alignment.samples import reader
    from momacli.models.families import open_classifier

    differences = {}
    with MultiTask.open(inputs.target) as written, torch.no_grad():
        for task, A, features in zip(tasks, fitted.transforms, fitted.features_after, strict=True):
            model = written.tasks[task.task]
            assert model.description is not None
            loaded = open_classifier(
                model.description.config,
                model.entries,
                heads=inputs.recipe.heads,
                device=inputs.device,
            )
            loaded.load(reader(model), model.keys, source=str(inputs.target))
            indices = torch.arange(min(16, task.count))
            expected = task.head(features[: len(indices)] @ A.mT)
            found = loaded.logits(task.batch(indices)).float()
            differences[task.task] = float((found - expected).abs().max())
    worst = max(differences.values())
    if worst > 1e-2:
        inputs.listener(
            Notice(f"logits of {inputs.target} differ by {worst:.1e} from the aligned ones")
        )
    return differences


def _task_reports(tasks: Sequence["TaskData"], fitted: "Fitted") -> dict[str, TaskReport]:
    """All but how the written model does, which is not written yet."""
    from momacli.features.metrics import coefficient, cosine
    from momacli.features.procrustes import orthogonality_error

    reports = {}
    for t, task in enumerate(tasks):
        A = fitted.transforms[t]
        before, after = fitted.features_before[t], fitted.features_after[t] @ A.mT
        reports[task.task] = TaskReport(
            samples=task.count,
            objective_before=float(fitted.objective_before[t]),
            objective_after=float(fitted.objective_after[t]),
            cosine_before=float(cosine(before, task.finetuned).mean()),
            cosine_after=float(cosine(after, task.finetuned).mean()),
            coefficient_before=float(coefficient(before, task.finetuned).mean()),
            coefficient_after=float(coefficient(after, task.finetuned).mean()),
            orthogonality_error=float(orthogonality_error(A)),
            logit_difference=0.0,
        )
    return reports


def _parameters(model: TaskModel) -> int:
    return sum(entry.elements for entry in model.entries.values())
