"""Find mask and transforms from unlabeled samples; the only loop, whatever is learned.

Each step is one forward and backward pass of the merged encoder over the samples of all
tasks together, and a few element-wise passes over its parameters. Fine-tuned encoders are not
needed here: their features come in ready made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.alignment.mask import MaskedEncoder, start_value
from momacli.alignment.objectives import feature_distance, logit_divergence
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import Settings
from momacli.alignment.transforms import PenalisedMatrices, RunningSolution, Transforms
from momacli.data.order import shuffled
from momacli.errors import DivergenceError
from momacli.features.families import FAMILIES, Moments, moments
from momacli.features.procrustes import polar_factor
from momacli.models.interface import Batch, Encoder, Head, Padding
from momacli.progress import Listener, Notice, Progress, ignore
from momacli.signals import uninterrupted

_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TaskData:
    """What one task brings: its samples, what its fine-tuned encoder made of them, its head."""

    task: str
    count: int
    batch: Callable[[Tensor], Batch]  # indices [n] -> inputs on the encoder's device
    finetuned: Float[Tensor, "N d"]
    head: Head
    padding: Padding = field(default_factory=Padding)  # the same for all tasks


@dataclass(frozen=True)
class Fitted:
    """The result: A_t per task, M per tensor (none without a mask), and what they achieve."""

    transforms: Float[Tensor, "T d d"]
    masks: Mapping[str, Tensor]
    headroom: float
    objective_before: Float[Tensor, " T"]  # of the merged model as it is, A = I
    objective_after: Float[Tensor, " T"]
    features_before: Sequence[Float[Tensor, "N d"]]
    features_after: Sequence[Float[Tensor, "N d"]]  # raw; A_t not applied
    masked_share: float
    steps: int


def fit_alignment(
    encoder: Encoder,
    read_base: Callable[[str], Tensor],
    tasks: Sequence[TaskData],
    settings: Settings,
    *,
    headroom: float,
    keeper: Keeper | None = None,
    listener: Listener = ignore,
) -> Fitted:
    """Fit transforms and mask to the merged weights that the encoder now holds.

    The encoder is left with the masked weights. The objective on all samples never ends above
    where it started (the closed form; with learned matrices, the identity): if the steps made
    it worse, the closed form without a mask is returned.

    keeper: keeps the state, so that a run that was stopped goes on where it was, with the same
        result; the one who has the result discards it.

    Raises DivergenceError, naming step and task, if a loss is not finite.
    """
    objective = _objective(settings)
    before = encode_all(encoder, tasks, "merged features", listener)
    check_finite(before, tasks)
    family = "orthogonal" if settings.transform == "penalty" else settings.transform
    full = _moments(before, tasks)
    closed = FAMILIES[family](full).float()
    identity = torch.eye(closed.shape[-1], device=closed.device).expand_as(closed)
    raw = _objectives(objective, before, identity, tasks)
    start = _objectives(objective, before, closed, tasks)
    unmasked = Fitted(closed, {}, 1.0, raw, start, before, before, 0.0, 0)
    if settings.mask == "none":
        return unmasked

    first = start_value(headroom) if settings.start == "merged" else settings.start
    masked = MaskedEncoder(encoder.parameters, read_base, headroom=headroom, start=first)
    transforms = _transforms(settings, full)
    _descend(encoder, masked, transforms, tasks, settings, objective, keeper, listener)
    masked.release()
    after = encode_all(encoder, tasks, "aligned features", listener)
    matrices = _best_transforms(settings, transforms, after, tasks, objective)
    reached = _objectives(objective, after, matrices, tasks)
    if reached.sum() > (raw if settings.transform == "penalty" else start).sum():
        listener(Notice("the mask did not lower the objective; only the transforms are kept"))
        return unmasked
    return Fitted(
        matrices,
        masked.masks(),
        headroom,
        raw,
        reached,
        before,
        after,
        masked.masked_share(),
        settings.steps,
    )


@torch.no_grad()
def encode_all(
    encoder: Encoder, tasks: Sequence[TaskData], stage: str, listener: Listener = ignore
) -> list[Float[Tensor, "N d"]]:
    """Return the encoder's features of all samples of each task."""
    total, done = sum(task.count for task in tasks), 0
    result = []
    for task in tasks:
        parts = []
        for indices in torch.arange(task.count).split(_EVALUATION_BATCH):
            parts.append(encoder.features(task.batch(indices)).float())
            done += len(indices)
            listener(Progress(stage, done, total, "samples"))
        result.append(torch.cat(parts))
    return result


def check_finite(merged: Sequence[Float[Tensor, "N d"]], tasks: Sequence[TaskData]) -> None:
    """Raise DivergenceError naming whose features of which task are not finite."""
    for z_m, task in zip(merged, tasks, strict=True):
        for whose, features in (("merged", z_m), ("fine-tuned", task.finetuned)):
            if not bool(torch.isfinite(features).all()):
                raise DivergenceError(
                    f"the {whose} model's features of task {task.task} are not finite",
                    hint="look for broken samples in its folder, or NaN in the checkpoints",
                )


def _descend(
    encoder: Encoder,
    masked: MaskedEncoder,
    transforms: Transforms,
    tasks: Sequence[TaskData],
    settings: Settings,
    objective: "_ObjectiveFunction",
    keeper: Keeper | None,
    listener: Listener,
) -> None:
    done = _resumed(keeper, masked, transforms, listener)
    orders = [
        islice(
            shuffled(one.count, settings.batch_size, seed=settings.seed, task=one.task), done, None
        )
        for one in tasks
    ]
    try:
        while done < settings.steps:
            picked = [next(order) for order in orders]
            values = _step(
                encoder, masked, transforms, tasks, picked, settings, objective, done + 1
            )
            done += 1
            listener(Progress("aligning", done, settings.steps, "steps", values))
            if keeper and keeper.every and done % keeper.every == 0:
                keeper.save(done, _state(masked, transforms))
    except KeyboardInterrupt:
        if keeper:
            with uninterrupted():
                keeper.save(masked.steps, _state(masked, transforms))
            text = f"stopped after step {masked.steps}; the same command goes on from there"
            listener(Notice(text))
        raise


def _step(
    encoder: Encoder,
    masked: MaskedEncoder,
    transforms: Transforms,
    tasks: Sequence[TaskData],
    picked: Sequence[Tensor],
    settings: Settings,
    objective: "_ObjectiveFunction",
    number: int,
) -> dict[str, float]:
    """Move mask and transforms by one step on these samples; returns each task's loss."""
    batches = [task.batch(indices) for task, indices in zip(tasks, picked, strict=True)]
    features = encoder.features(tasks[0].padding.together(batches)).float()
    merged = features.split([len(indices) for indices in picked])
    finetuned = [task.finetuned[indices] for task, indices in zip(tasks, picked, strict=True)]
    losses = [
        objective(z_m @ A.mT, z_t, task.head)
        for z_m, A, z_t, task in zip(merged, transforms.matrices, finetuned, tasks, strict=True)
    ]
    (torch.stack(losses).sum() + transforms.penalty()).backward()
    values = _finite(losses, tasks, number)
    with uninterrupted():  # half an update would be no state to go on from
        masked.step(rate=settings.mask_rate, sparsity=settings.sparsity)
        transforms.observe([z_m.detach() for z_m in merged], finetuned)
    return values


def _state(masked: MaskedEncoder, transforms: Transforms) -> dict[str, Tensor]:
    parts = {"mask": masked.state(), "transforms": transforms.state()}
    return {
        f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()
    }


def _resumed(
    keeper: Keeper | None, masked: MaskedEncoder, transforms: Transforms, listener: Listener
) -> int:
    """Take up a kept state; returns how many steps it has behind it."""
    kept = keeper.load() if keeper else None
    if kept is None:
        return 0
    step, tensors = kept
    parts: dict[str, dict[str, Tensor]] = {"mask": {}, "transforms": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    masked.restore(step, parts["mask"])
    transforms.restore(step, parts["transforms"])
    listener(Notice(f"going on after step {step}"))
    return step


def _finite(losses: Sequence[Tensor], tasks: Sequence[TaskData], step: int) -> dict[str, float]:
    values = torch.stack([loss.detach() for loss in losses]).tolist()
    named = {task.task: value for task, value in zip(tasks, values, strict=True)}
    broken = [task for task, value in named.items() if not math.isfinite(value)]
    if broken:
        raise DivergenceError(
            f"step {step}: the loss of {', '.join(broken)} is not finite",
            hint="lower --mask-rate, or look for broken samples in that task's folder",
        )
    return named


_ObjectiveFunction = Callable[[Tensor, Tensor, Head], Tensor]


def _objective(settings: Settings) -> _ObjectiveFunction:
    if settings.objective == "logits":
        return logit_divergence
    return lambda aligned, finetuned, _head: feature_distance(aligned, finetuned)


@torch.no_grad()
def _objectives(
    objective: _ObjectiveFunction,
    merged: Sequence[Tensor],
    matrices: Tensor,
    tasks: Sequence[TaskData],
) -> Float[Tensor, " T"]:
    return torch.stack(
        [
            objective(z_m @ A.mT, task.finetuned, task.head)
            for z_m, A, task in zip(merged, matrices, tasks, strict=True)
        ]
    )


def _moments(merged: Sequence[Tensor], tasks: Sequence[TaskData]) -> Moments:
    """Return the moments of all samples of each task."""
    each = [moments(z_m, task.finetuned) for z_m, task in zip(merged, tasks, strict=True)]
    return Moments(torch.cat([one.cross for one in each]), torch.cat([one.gram for one in each]))


def _transforms(settings: Settings, full: Moments) -> Transforms:
    if settings.transform == "penalty":
        eye = torch.eye(full.cross.shape[-1], device=full.cross.device)
        start = eye.expand(full.cross.shape)
        return PenalisedMatrices(start, rate=settings.transform_rate, alpha=settings.alpha)
    return RunningSolution(
        full,
        family=settings.transform,
        memory=settings.memory,
        solve_every=settings.solve_every,
    )


@torch.no_grad()
def _best_transforms(
    settings: Settings,
    transforms: Transforms,
    merged: Sequence[Tensor],
    tasks: Sequence[TaskData],
    objective: _ObjectiveFunction,
) -> Float[Tensor, "T d d"]:
    """A_t as found on the way or solved anew on all samples, whichever does better there."""
    found = transforms.matrices.detach()
    family = settings.transform
    if family == "penalty":
        if not settings.project:
            return found
        family, found = "orthogonal", polar_factor(found)
    anew = FAMILIES[family](_moments(merged, tasks)).float()
    candidates = torch.stack([found, anew])
    scores = torch.stack([_objectives(objective, merged, A, tasks) for A in candidates])
    best = scores.argmin(dim=0)
    return candidates[best, torch.arange(len(tasks), device=best.device)]
