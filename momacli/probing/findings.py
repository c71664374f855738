"""What a probe finds of one task: numbers for tables, values for figures."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from momacli.features.metrics import Distribution
from momacli.features.rotation import Closeness
from momacli.shapes import Float, Int
from momacli.statistics.score import Score

RAW = "raw"
"""The merged features as they are, beside the families they are transformed by."""

CONDITIONS = (RAW, "orthogonal", "linear")
"""What Figure 5 compares."""


@dataclass(frozen=True)
class FewShot:
    """Accuracy with a few labeled samples of each class, over several choices of them."""

    mean: float
    deviation: float  # standard deviation over the choices
    support: int  # labeled samples in all
    accuracies: tuple[float, ...]  # of each choice


@dataclass(frozen=True)
class FamilyFit:
    """How well the best map of a family leads from merged to fine-tuned features.

    distance: E|A z_m + b - z_t|_2 (Eq. 7); error: E|A z_m + b - z_t|^2 / E|z_t|^2, whose
    numerator is what was minimised.
    """

    distance_fitted: float  # on the samples it was fitted on
    distance: float  # on those it is evaluated on
    error_fitted: float
    error: float
    accuracy: Score  # of the fine-tuned head on A z_m + b


@dataclass(frozen=True)
class Agreement:
    """How transformed merged features lie to the fine-tuned ones, over the evaluated samples."""

    cosine: Distribution
    coefficient: Distribution


@dataclass(frozen=True)
class Protocols:
    """How a model does on one task by the paper's ways to evaluate it (Tables 7 to 10)."""

    finetuned: Score
    merged: Score  # by the head that the merged model has: the static one, unless it was aligned
    knn: Mapping[str, FewShot]  # by shots
    aligned_c: Mapping[str, FewShot]


@dataclass(frozen=True)
class TaskFindings(Protocols):
    """All numbers of one task."""

    classes: int
    dimensions: int
    fitted: int  # samples that transforms were fitted on
    evaluated: int
    families: Mapping[str, FamilyFit]  # raw, and Table 1's
    agreement: Mapping[str, Agreement]  # raw, orthogonal, linear
    closeness: Mapping[str, Closeness]  # orthogonal, linear


@dataclass(frozen=True)
class Curves:
    """The values behind the numbers, for figures."""

    cosines: Mapping[str, Float[Tensor, " N"]]  # by condition
    coefficients: Mapping[str, Float[Tensor, " N"]]
    phases: Float[Tensor, " d"]  # of the orthogonal map, degrees, ascending
    stretches: Float[Tensor, " d"]  # singular values of the linear map, descending


@dataclass(frozen=True)
class Places:
    """Samples in the plane: their fine-tuned, merged and orthogonally aligned features."""

    finetuned: Float[Tensor, "n 2"]
    merged: Float[Tensor, "n 2"]
    aligned: Float[Tensor, "n 2"]
    labels: Int[Tensor, " n"]
