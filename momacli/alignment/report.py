"""What an alignment achieved, in numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.data.features import CacheUse


@dataclass(frozen=True)
class TaskReport:
    """What alignment did for one task, on its unlabeled samples and all views of them."""

    samples: int  # of which there may be several views
    objective_before: float
    objective_after: float
    cosine_before: float  # mean of cos(merged, fine-tuned) (paper, section 3.4)
    cosine_after: float
    coefficient_before: float
    coefficient_after: float
    orthogonality_error: float | None  # max |A^T A - I|; None without a transform
    logit_difference: float  # written model against what was fitted, on a real batch
    views: int = 1  # of each sample


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
    method: str = "moma"
    objective: str = "logits"
    samples_per_second: float = 0.0  # of all tasks together, in the steps of the mask
    cache: "CacheUse | None" = None  # of fine-tuned features
    added: Mapping[str, int] = field(default_factory=dict)  # parameters, by task; none: empty


def task_report(
    merged: "Tensor",
    mended: "Tensor",
    finetuned: "Tensor",
    *,
    objective: tuple[float, float],
    orthogonality_error: float | None,
    views: int = 1,
) -> TaskReport:
    """Measure features [N, d] before and after, but not yet the model that is to be written.

    objective: before and after.
    views: of each sample, among the N.
    """
    from momacli.features.metrics import coefficient, cosine

    return TaskReport(
        samples=len(finetuned) // views,
        objective_before=objective[0],
        objective_after=objective[1],
        cosine_before=float(cosine(merged, finetuned).mean()),
        cosine_after=float(cosine(mended, finetuned).mean()),
        coefficient_before=float(coefficient(merged, finetuned).mean()),
        coefficient_after=float(coefficient(mended, finetuned).mean()),
        orthogonality_error=orthogonality_error,
        logit_difference=0.0,
        views=views,
    )
