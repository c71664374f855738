"""How an alignment is run; every default says where it comes from.

What else was tried on the five tasks of `moma demo`, with masks that begin at the merged model
and one view of each image (`python -m tests.benchmarks choices --demo moma-demo --start merged`;
from 0, as is the default, the first row has 2.04, 95.8 and 91.4, and with views 93.3 of 45; the
objective on the unlabeled samples, summed over tasks, and per cent correct on others, with all
500 samples of each task and with 45):

    mask entries       for each parameter   2.07  95.6  91.1  the default, as in the paper
                       for each row         3.32  93.2  90.5  no option: wins less
                       for each tensor      4.51  90.4  87.8  no option
    rotations          what heads see first 2.07  95.6  91.1  the default
                       all features alike   1.88  95.0  90.9  no option by itself
                       without the prior    2.07  95.5  89.2  an option
                       Cayley, Adam 0.01    1.93  95.4  90.3  no option: no better, has a rate
                       e^S, Adam 0.01       1.93  95.3  90.1  no option
    without a mask     what heads see first 5.04  87.6  83.6  an option
    other transforms   similarities         1.85  94.8  90.8  an option
                       scalings             2.80  95.2  89.7  an option
                       linear maps          1.35  96.1  91.1  an option
    objective          both                 2.07  95.6  91.1  the default
                       logits               0.07  95.3  90.6  an option
                       features             14.1  94.6  90.9  an option
    encoder's steps    float32              2.07  95.6  91.1
                       bfloat16             2.07  95.6  91.2  an option; default where it is fast
    the paper's recipe                      23.2  85.7  78.9  --recipe paper

300 steps of 16 samples a task, one seed; accuracies within half a point are alike. Objectives
are those that were minimised, so they compare only where these are the same.

On eight image tasks and all unlabeled images of each (`python -m tests.benchmarks vision8 …
--choices all --start merged`, which has 100 steps of 8, one seed; 46.4 before, 59.7 of the
experts):

    the default but for the start           3.36  55.9
    mask entries       for each row         4.23  54.7
                       for each tensor      4.98  52.9
                       of two values alone  4.04  54.7  no option: wins less
    its Adam's rate    0.03                 4.02  54.8
                       0.1                  3.36  55.9  the default, as in the paper
                       0.3                  3.16  56.0
                       0.1, falling to 0    3.80  55.4  no option
    its start          the merged model     3.36  55.9
                       S = 0                3.34  56.3  the default
    headroom           half of it           3.67  55.5
                       twice                3.20  55.7
    weight of M^2      5e-9                 3.36  55.9  the default, as in the paper
                       0                    3.36  55.9
    rotations          all features alike   3.26  54.8
                       without the prior    3.35  56.0
                       Cayley, Adam 0.01    3.70  55.3
                       e^S, Adam 0.01       3.69  55.2
    linear maps                             2.30  56.4
    objective          logits               0.58  55.4
                       features             35.0  54.8
                       squared distances    1.65  55.9  no option: as good
    the paper's recipe                      43.6  51.3
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from momacli.data.reading import Views, check_views
from momacli.errors import UsageError
from momacli.models.device import Precision, check_precision

Mask = Literal["element", "none"]
Transform = Literal["orthogonal", "similarity", "scaling", "linear", "penalty"]
Objective = Literal["both", "logits", "features"]

LARGEST_BATCH = 16
"""Where a batch size that is found begins: the paper's for vision."""


@dataclass(frozen=True)
class Settings:
    """Settings of the joint optimization of mask and transforms (MOMA Eq. 10).

    mask: "element" learns M = sigma(S), one entry per merged parameter; "none" leaves the
        merged encoder as it is and finds A_t in closed form.
    transform: "orthogonal" keeps A_t exactly on O(d): the best for what the head sees of
        features and then for the rest of them (see `features.seen`), by running moments, solved
        anew every `solve_every` steps. With objective "features" it is the best for all of them
        alike, the polar factor of the cross-covariance. "similarity", "scaling" and
        "linear" are other families in closed form; a linear head absorbs any of them without
        a parameter, but they are no longer rigid. Linear maps won more without a mask, on task
        arithmetic of eight image tasks 53.6 against 51.9 and of five text tasks 69.4 against
        68.7, and with one as much, 57.1 against 57.0 and 70.2 against 70.0
        (`tests/benchmarks/results`). They are no default, for heads that normalise features can
        absorb rotations alone, and only rotations keep lengths and angles of features, which
        other uses of them rest on.
        "penalty" is the paper's soft |A^T A - I| with weight `alpha`, projected on O(d) only if
        `project` is set.
    prior: of how many more samples along each axis it counts that features stay as they are
        (see `features.families.moments`); 0 is the paper's. In closed form alone, of eight image
        tasks with 10, 40 and 160 samples each (45.8 merged, 59.6 fine-tuned): 34.1, 48.5 and 52.0
        without, 47.7, 50.1 and 51.8 with 30; of five text tasks with 20 and 200 (58.7, 70.4):
        61.6 and 68.6 without, 65.7 and 69.0 with 30. (`python -m tests.benchmarks vision8 ...
        --choices orthogonal unpriored --samples 10 40 160` prints such numbers.)
    objective: "logits" is KL(fine-tuned || merged) through the frozen heads, "features" the
        paper's E|A z_m - z_t|_2, "both" the sum of the first and the second in units of the
        features' length. With 100 steps of 8 on the image tasks, 60 samples each and then all of
        them (`--choices element logits features --samples 60 2000 --start merged`): logits 52.3
        and 55.5, both 53.0 and 55.7, features 53.1 and 54.7; with 50 steps of 8 on the text
        tasks: 69.9, 69.5, 69.4, where one seed tells no difference.
    headroom: theta = theta_0 + headroom * M * tau; "auto" lets the multi-task vector grow to
        the norm of the full sum of the task vectors; 1 is the paper's, which can only shrink it.
    start: initial value of S. 0 starts with half of what the headroom allows, and so, whatever the
        merge, at half the norm of the full sum; "merged" starts at the merged model itself,
        headroom * sigma(S) = 1. The paper does not give one. From average, task arithmetic and
        TIES of twelve image tasks, 100 steps of 8: 64.2, 64.2 and 64.1 from 0, 63.3, 63.6 and
        63.7 from the merged model; from task arithmetic of five text tasks 70.0 and 70.1.
    views: of each image: the image itself and random crops of it; "auto" takes more than one
        where there are few images (see `momacli.data.views` for the measurement). The paper has
        one.
    steps, batch_size: batch_size samples of each task a step; 16 is the paper's for vision.
        "auto" begins with 16 and takes half as many, from the start, as often as the device
        has too little memory; what comes out is what that number gives.
    mask_rate: Adam's learning rate for S; 0.1 is the paper's.
    transform_rate: Adam's learning rate for A where it is learned; 1e-3 is the paper's.
    sparsity: weight of sum sigma(S)^2; 5e-9 is the paper's L2 weight.
    early_stop: hold a tenth of the samples back and stop when the objective on them no longer
        falls; `steps` is then the most there are. Off: 300 steps end where it is flat (see
        `alignment.early_stop` for the measurement), and all samples are learned from.
    precision: of the encoder's arithmetic in the steps; "auto" is bfloat16 on a GPU that has it
        and on a processor with AMX (see `models.precision`), float32 elsewhere. S, A_t, their
        updates, the objective, and the features that results are told from are float32 in any
        case. On five text tasks (MiniLM, 50 steps, seeds 0 and 1) the average accuracy was 69.0
        and 68.9 in bfloat16, 69.2 and 68.8 in float32, in a third of the time.
    seed: of the order of the samples.
    """

    mask: Mask = "element"
    transform: Transform = "orthogonal"
    prior: float = 30.0
    objective: Objective = "both"
    headroom: float | Literal["auto"] = "auto"
    start: float | Literal["merged"] = 0.0
    views: Views = "auto"
    steps: int = 300
    batch_size: int | Literal["auto"] = LARGEST_BATCH
    mask_rate: float = 0.1
    transform_rate: float = 1e-3
    sparsity: float = 5e-9
    alpha: float = 1.0
    project: bool = True
    solve_every: int = 10
    memory: float = 0.98  # decay a step of the running cross-covariance
    early_stop: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises UsageError."""
        kinds = {
            "mask": Mask,
            "transform": Transform,
            "objective": Objective,
        }
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise UsageError(
                    f"{name}: expected {' or '.join(get_args(kind))}, found {getattr(self, name)}"
                )
        check_precision(self.precision)
        check_views(self.views)
        for name in ("steps", "batch_size", "solve_every"):
            value = getattr(self, name)
            if name == "batch_size" and value == "auto":
                continue
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        if not 0 <= self.prior < math.inf:
            raise UsageError(f"prior must be zero or more, found {self.prior}")
        if self.headroom != "auto" and self.headroom <= 0:
            raise UsageError(f"headroom must be positive, found {self.headroom}")
        if self.start == "merged" and self.headroom != "auto" and self.headroom <= 1:
            raise UsageError(
                f"a mask with headroom {self.headroom:g} cannot start at the merged model",
                hint="give a headroom above 1, or a start such as 0",
            )


def paper(base: Settings) -> Settings:
    """Return the paper's recipe, with what it leaves open filled in as its own text suggests."""
    return replace(
        base,
        transform="penalty",
        prior=0.0,
        objective="features",
        headroom=1.0,
        start=0.0,
        views=1,
        project=False,
    )
