"""Methods that see no more than features: one pass of the merged encoder, then task by task.

A run that is stopped goes on after the last task that was finished.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from momacli.alignment.catalog import ADDING, FeatureMethod
from momacli.alignment.encoding import TaskData, check_finite, merged_features
from momacli.alignment.objectives import answer_divergence
from momacli.alignment.outcome import CHECKED, Outcome
from momacli.alignment.report import task_report
from momacli.alignment.resume import Keeper
from momacli.data.order import generator_of
from momacli.features.adapter import Adapter
from momacli.models.interface import Encoder, Head
from momacli.progress import Listener, Notice, Progress
from momacli.signals import uninterrupted


def fit_on_features(
    encoder: Encoder,
    tasks: Sequence[TaskData],
    method: FeatureMethod,
    keeper: Keeper,
    listener: Listener,
) -> Outcome:
    """Fit an adapter or a head to each task's features; the encoder holds the merged weights.

    Raises DivergenceError if features or a loss are not finite.
    """
    merged = merged_features(encoder, tasks, listener)
    check_finite(merged, tasks)
    done = _resumed(keeper, listener)
    try:
        for number, (task, z_m) in enumerate(zip(tasks, merged, strict=True)):
            if task.task in done:
                continue
            told = _telling(method, number, len(tasks), task.task, listener)
            done[task.task] = _fit(method, task, z_m, told)
            if keeper.every and number + 1 < len(tasks):
                _keep(keeper, done)
    except KeyboardInterrupt:
        with uninterrupted():
            _keep(keeper, done)
        listener(Notice(f"stopped after {len(done)} tasks; the same command goes on from there"))
        raise
    if method.name in ADDING:
        return _adapted(tasks, merged, method, done)
    return _trained(tasks, merged, method, done)


def _fit(
    method: FeatureMethod, task: TaskData, merged: Tensor, told: Callable[[int, float], None]
) -> dict[str, Tensor]:
    """Fit one task; returns what was found, by part."""
    inputs = (merged, task.finetuned)
    keywords = method.own_options | {
        "generator": generator_of(method.options["seed"], task.task),
        "on_step": told,
    }
    if method.name in ADDING:
        adapter: Adapter = method.function(*inputs, **keywords)
        return {"down": adapter.down, "up": adapter.up}
    head: Head = method.function(*inputs, task.head, **keywords)
    return {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})


def _telling(
    method: FeatureMethod, number: int, count: int, task: str, listener: Listener
) -> Callable[[int, float], None]:
    """Tell of the steps of one task as part of those of all."""

    def tell(done: int, loss: float) -> None:
        listener(
            Progress(
                f"fitting {method.name}",
                number * method.steps + done,
                count * method.steps,
                "steps",
                {task: loss},
            )
        )

    return tell


def _keep(keeper: Keeper, done: Mapping[str, Mapping[str, Tensor]]) -> None:
    if done:
        tensors = {f"{part}.{task}": v for task, each in done.items() for part, v in each.items()}
        keeper.save(len(done), tensors)


def _resumed(keeper: Keeper, listener: Listener) -> dict[str, dict[str, Tensor]]:
    kept = keeper.load()
    done: dict[str, dict[str, Tensor]] = {}
    for name, value in ({} if kept is None else kept[1]).items():
        part, _, task = name.partition(".")
        done.setdefault(task, {})[part] = value
    if done:
        listener(Notice(f"going on after {len(done)} tasks"))
    return done


@torch.no_grad()
def _adapted(
    tasks: Sequence[TaskData],
    merged: Sequence[Tensor],
    method: FeatureMethod,
    found: Mapping[str, Mapping[str, Tensor]],
) -> Outcome:
    reports, logits, adapters = {}, {}, {}
    for task, z_m in zip(tasks, merged, strict=True):
        parts = found[task.task]
        adapter = Adapter(parts["down"].to(z_m.device), parts["up"].to(z_m.device))
        mended = adapter(z_m)
        distances = [float((z - task.finetuned).abs().mean()) for z in (z_m, mended)]
        reports[task.task] = task_report(
            z_m,
            mended,
            task.finetuned,
            objective=(distances[0], distances[1]),
            orthogonality_error=None,
        )
        logits[task.task] = task.head(mended[:CHECKED])
        adapters[task.task] = adapter
    return Outcome(reports, logits, method.steps, adapters=adapters)


@torch.no_grad()
def _trained(
    tasks: Sequence[TaskData],
    merged: Sequence[Tensor],
    method: FeatureMethod,
    found: Mapping[str, Mapping[str, Tensor]],
) -> Outcome:
    reports, logits = {}, {}
    for task, z_m in zip(tasks, merged, strict=True):
        parts = {part: value.to(z_m.device) for part, value in found[task.task].items()}
        head = Head(parts["weight"], parts.get("bias"), task.head.rest, task.head.before)
        wanted = task.head(task.finetuned)
        divergences = [float(answer_divergence(one(z_m), wanted)) for one in (task.head, head)]
        reports[task.task] = task_report(
            z_m,
            z_m,
            task.finetuned,
            objective=(divergences[0], divergences[1]),
            orthogonality_error=None,
        )
        logits[task.task] = head(z_m[:CHECKED])
    return Outcome(reports, logits, method.steps, heads=found)
