"""Methods that see no more than features: one pass of the merged encoder, then task by task.

A run that is stopped goes on after the last task that was finished.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from momacli.alignment.catalog import ADDING, FeatureMethod
from momacli.alignment.encoding import TaskData, check_finite, merged_features
from momacli.alignment.objectives import answer_divergence
from momacli.alignment.outcome import CHECKED, Outcome
from momacli.alignment.report import task_report
from momacli.alignment.resume import Keeper
from momacli.data.order import generator_of
from momacli.features.adapter import Adapter, adapter_of
from momacli.models.interface import Encoder, Head
from momacli.progress import Listener, Notice, Progress
from momacli.signals import uninterrupted

Told = Callable[[int, float], None]
"""Is told how many steps are done, and the loss of the last."""

Fit = Callable[[TaskData, Told], dict[str, Tensor]]
"""Fits one task; returns what was found, by part."""


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
    of_task = {task.task: z_m for task, z_m in zip(tasks, merged, strict=True)}
    fit = partial(_fit, method, of_task)
    done = task_by_task(tasks, method, fit, keeper, listener)
    if method.name in ADDING:
        return adapted(tasks, merged, method, done, lambda _, adapter, z_m: adapter(z_m))
    return _trained(tasks, merged, method, done)


def task_by_task(
    tasks: Sequence[TaskData], method: FeatureMethod, fit: Fit, keeper: Keeper, listener: Listener
) -> dict[str, dict[str, Tensor]]:
    """Fit what is not kept of an earlier run, and return what was found of all, by task."""
    done = _resumed(keeper, listener)
    try:
        for number, task in enumerate(tasks):
            if task.task in done:
                continue
            told = _telling(method, number, len(tasks), task.task, listener)
            done[task.task] = fit(task, told)
            if keeper.every and number + 1 < len(tasks):
                _keep(keeper, done)
    except KeyboardInterrupt:
        with uninterrupted():
            _keep(keeper, done)
        listener(Notice(f"stopped after {len(done)} tasks; the same command goes on from there"))
        raise
    return done


def keywords_of(method: FeatureMethod, task: TaskData, told: Told) -> dict[str, Any]:
    """What a method's function takes besides its inputs."""
    generator = generator_of(method.options["seed"], task.task)
    return {**method.own_options, "generator": generator, "on_step": told}


def _fit(
    method: FeatureMethod, merged: Mapping[str, Tensor], task: TaskData, told: Told
) -> dict[str, Tensor]:
    inputs = (merged[task.task], task.finetuned)
    keywords = keywords_of(method, task, told)
    if method.name in ADDING:
        adapter: Adapter = method.function(*inputs, **keywords)
        return adapter.parts
    head: Head = method.function(*inputs, task.head, **keywords)
    return {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})


def _telling(method: FeatureMethod, number: int, count: int, task: str, listener: Listener) -> Told:
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
def adapted(
    tasks: Sequence[TaskData],
    merged: Sequence[Tensor],
    method: FeatureMethod,
    found: Mapping[str, Mapping[str, Tensor]],
    mend: Callable[[TaskData, Adapter, Tensor], Tensor],
) -> Outcome:
    """The outcome of adapters; mend: gives a task's mended features, its merged ones given."""
    reports, logits, adapters = {}, {}, {}
    for task, z_m in zip(tasks, merged, strict=True):
        adapter = adapter_of(found[task.task])
        assert adapter is not None
        adapter = adapter.to(z_m.device)
        mended = mend(task, adapter, z_m)
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
