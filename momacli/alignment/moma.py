"""MOMA (Kong et al. 2024, arXiv:2412.13526): a mask, and an orthogonal matrix a task, folded away.

    theta_m = theta_0 + h sigma(S) * tau,   W_t <- W_t A_t

S and A_t are fitted to samples of all tasks together.
"""

from collections.abc import Sequence

import torch

from momacli.alignment.encoding import TaskData
from momacli.alignment.fit import Fitted, fit_alignment
from momacli.alignment.headroom import find_headroom
from momacli.alignment.inputs import Inputs
from momacli.alignment.outcome import CHECKED, Outcome
from momacli.alignment.report import task_report
from momacli.alignment.resume import Keeper
from momacli.alignment.samples import reader
from momacli.alignment.settings import Settings
from momacli.alignment.sharing import ALONE
from momacli.errors import UsageError
from momacli.features.procrustes import orthogonality_error
from momacli.merging.ranks import Ranks
from momacli.models.classification import Classifier
from momacli.models.separate_head import SeparateHead


def fit_moma(
    inputs: Inputs,
    network: Classifier | SeparateHead,
    tasks: Sequence[TaskData],
    settings: Settings,
    keeper: Keeper,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Find mask and transforms. Raises UsageError for transforms that heads cannot absorb."""
    _check_absorbable(settings, tasks)
    headroom = find_headroom(inputs, settings)
    network.load_encoder(reader(inputs.first))
    fitted = fit_alignment(
        network,
        lambda key: inputs.base.read(key),
        tasks,
        settings,
        headroom=headroom,
        keeper=keeper,
        ranks=ranks,
        listener=inputs.listener,
    )
    return _outcome(tasks, fitted)


def _check_absorbable(settings: Settings, tasks: Sequence[TaskData]) -> None:
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


@torch.no_grad()
def _outcome(tasks: Sequence[TaskData], fitted: Fitted) -> Outcome:
    reports, logits = {}, {}
    for t, task in enumerate(tasks):
        A, raw = fitted.transforms[t], fitted.features_after[t]
        reports[task.task] = task_report(
            fitted.features_before[t],
            raw @ A.mT,
            task.finetuned,
            objective=(float(fitted.objective_before[t]), float(fitted.objective_after[t])),
            orthogonality_error=float(orthogonality_error(A)),
            views=task.views,
        )
        logits[task.task] = task.head(raw[:CHECKED] @ A.mT)
    return Outcome(
        reports,
        logits,
        fitted.steps,
        fitted.batch_size,
        transforms={task.task: A for task, A in zip(tasks, fitted.transforms, strict=True)},
        masks=fitted.masks,
        headroom=fitted.headroom,
        masked_share=fitted.masked_share,
        samples_per_second=fitted.samples_per_second,
    )
