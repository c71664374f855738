"""Find mask and transforms from unlabeled samples: the start, the steps, the best of both."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from momacli.alignment.descent import Descent, State, batch_size_of
from momacli.alignment.early_stop import EarlyStop, hold_back
from momacli.alignment.encoding import TaskData, check_finite, encode_all, merged_features
from momacli.alignment.mask import MaskedEncoder, start_value
from momacli.alignment.objectives import Objective, objective_called
from momacli.alignment.resume import Keeper
from momacli.alignment.settings import LARGEST_BATCH, Settings
from momacli.alignment.sharing import ALONE, fitting_all
from momacli.alignment.transforms import PenalisedMatrices, RunningSolution, Transforms
from momacli.errors import OutOfMemoryError
from momacli.features.families import FAMILIES, Moments, moments
from momacli.features.procrustes import polar_factor
from momacli.features.seen import seen_by
from momacli.merging.ranks import Ranks
from momacli.models.device import release_memory
from momacli.models.interface import Encoder
from momacli.progress import Listener, Notice, ignore
from momacli.shapes import Float


@dataclass(frozen=True)
class Fitted:
    """The result: A_t per task, M per tensor (none without a mask), and what they achieve."""

    transforms: Float[Tensor, "T d d"]
    masks: Mapping[str, Tensor]
    headroom: float
    objective_before: Float[Tensor, " T"]  # of the merged model as it is, A = I
    objective_after: Float[Tensor, " T"]
    features_before: Sequence[Float[Tensor, "_ d"]]
    features_after: Sequence[Float[Tensor, "_ d"]]  # raw; A_t not applied
    masked_share: float
    steps: int
    batch_size: int | None = None  # of each task a step, where there were steps
    samples_per_second: float = 0.0  # of all tasks together, in the steps


def fit_alignment(
    encoder: Encoder,
    read_base: Callable[[str], Tensor],
    tasks: Sequence[TaskData],
    settings: Settings,
    *,
    headroom: float,
    keeper: Keeper | None = None,
    ranks: Ranks = ALONE,
    listener: Listener = ignore,
) -> Fitted:
    """Fit transforms and mask to the merged weights that the encoder now holds.

    The encoder is left with the masked weights. The objective on all samples never ends above
    where it started (the closed form; with learned matrices, the identity): if the steps made
    it worse, the closed form without a mask is returned.

    keeper: keeps the state, so that a run that was stopped goes on where it was, with the same
        result; the one who has the result discards it.
    ranks: processes with the same encoder, samples and settings; each takes part of every pass
        and has a share of the mask's state, and all come to the same result.

    Raises DivergenceError, naming step and task, if a loss is not finite, and OutOfMemoryError,
    naming the batch size, if a step does not fit.
    """
    objective = objective_called(settings.objective)
    before = merged_features(encoder, tasks, listener, ranks)
    check_finite(before, tasks)
    family = "orthogonal" if settings.transform == "penalty" else settings.transform
    full = _moments(before, tasks, settings)
    closed = FAMILIES[family](full).float()
    identity = torch.eye(closed.shape[-1], device=closed.device).expand_as(closed)
    raw = _objectives(objective, before, identity, tasks)
    start = _objectives(objective, before, closed, tasks)
    unmasked = Fitted(closed, {}, 1.0, raw, start, before, before, 0.0, 0)
    if settings.mask == "none":
        return unmasked

    masked = _masked(encoder, read_base, settings, headroom, ranks)
    make = _maker(encoder, masked, before, tasks, settings, objective, ranks)
    kept = ranks.from_first((keeper.load() if keeper else None,))[0]
    descent, rate = _descended(make, settings.batch_size, kept, keeper, listener)
    transforms = descent.transforms
    steps = descent.watch.go_back(listener) if descent.watch else settings.steps
    masked.release()
    after = encode_all(encoder, tasks, "aligned features", listener, ranks)
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
        steps,
        descent.batch_size,
        rate,
    )


def _masked(
    encoder: Encoder,
    read_base: Callable[[str], Tensor],
    settings: Settings,
    headroom: float,
    ranks: Ranks,
) -> MaskedEncoder:
    first = start_value(headroom) if settings.start == "merged" else settings.start
    size = sum(4 * parameter.numel() for parameter in encoder.parameters.values())
    with fitting_all(
        ranks,
        f"not enough memory to learn a mask: seven times the encoder's {size / 1e9:.2g} GB",
        hint="take a device with more memory, or --mask none, which needs no steps",
    ):
        masked = MaskedEncoder(
            encoder.parameters, read_base, headroom=headroom, start=first, ranks=ranks
        )
    masked.restart()
    return masked


def _maker(
    encoder: Encoder,
    masked: MaskedEncoder,
    before: Sequence[Tensor],
    tasks: Sequence[TaskData],
    settings: Settings,
    objective: Objective,
    ranks: Ranks,
) -> Callable[[int], Descent]:
    """Return what makes a descent from the start with some batch size."""
    held: list[TaskData] = []
    if settings.early_stop:
        tasks, held, numbers = hold_back(tasks, settings.seed)
        before = [z_m[those] for z_m, those in zip(before, numbers, strict=True)]
    seen = _moments(before, tasks, settings)

    def make(size: int) -> Descent:
        transforms = _transforms(settings, seen)
        watch = EarlyStop(held, encoder, masked, transforms, objective, ranks) if held else None
        return Descent(encoder, masked, transforms, tasks, settings, objective, size, ranks, watch)

    return make


def _descended(
    make: Callable[[int], Descent],
    batch_size: int | Literal["auto"],
    kept: State | None,
    keeper: Keeper | None,
    listener: Listener,
) -> tuple[Descent, float]:
    """Do the steps, from the start with half as many samples where "auto" finds them too many.

    Returns how it went, and the samples a second.
    """
    if batch_size != "auto":
        size = batch_size
    else:
        size = LARGEST_BATCH if kept is None else batch_size_of(kept)
    while True:
        descent = make(size)
        started = time.monotonic()
        try:
            samples = descent.run(kept, keeper, listener)
            return descent, samples / max(1e-9, time.monotonic() - started)
        except OutOfMemoryError as error:
            if batch_size != "auto" or size == 1:
                raise
            listener(Notice(f"{error.message}; starting anew with half as many"))
        size, kept = size // 2, None
        descent.masked.restart()
        release_memory()


@torch.no_grad()
def _objectives(
    objective: Objective,
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


def _moments(merged: Sequence[Tensor], tasks: Sequence[TaskData], settings: Settings) -> Moments:
    """Return the moments of all samples of each task, and what the heads see of them."""
    each = [
        moments(z_m, task.finetuned, prior=settings.prior)
        for z_m, task in zip(merged, tasks, strict=True)
    ]
    return Moments(
        torch.cat([one.cross for one in each]),
        torch.cat([one.gram for one in each]),
        torch.cat([one.prior for one in each]),
        _seen(tasks, settings),
    )


def _seen(tasks: Sequence[TaskData], settings: Settings) -> list[Tensor]:
    """What rotations are fitted to first; nothing where the objective is features alone."""
    if settings.transform != "orthogonal" or settings.objective == "features":
        return []
    return [seen_by(task.head.weight, softmax=task.head.rest is None) for task in tasks]


def _transforms(settings: Settings, full: Moments) -> Transforms:
    if settings.transform == "penalty":
        eye = torch.eye(full.cross.shape[-1], device=full.cross.device)
        start = eye.expand(full.cross.shape)
        return PenalisedMatrices(start, rate=settings.transform_rate, alpha=settings.alpha)
    return RunningSolution(
        replace(full, cross=full.cross.clone(), gram=full.gram.clone()),
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
    objective: Objective,
) -> Float[Tensor, "T d d"]:
    """A_t as found on the way or solved anew on all samples, whichever does better there."""
    found = transforms.matrices.detach()
    family = settings.transform
    if family == "penalty":
        if not settings.project:
            return found
        family, found = "orthogonal", polar_factor(found)
    anew = FAMILIES[family](_moments(merged, tasks, settings)).float()
    candidates = torch.stack([found, anew])
    scores = torch.stack([_objectives(objective, merged, A, tasks) for A in candidates])
    best = scores.argmin(dim=0)
    return candidates[best, torch.arange(len(tasks), device=best.device)]
