"""The methods that are compared on every suite, by `moma compare`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momacli.compare import Options, compare
from momacli.comparing.plan import Sweeps
from momacli.comparing.report import CompareReport
from momacli.comparing.rows import Row
from momacli.comparing.specs import BASES
from momacli.data.folders import task_sources
from momacli.evaluate import evaluate
from momacli.progress import Listener
from tests.benchmarks.warm import run_warm

TOGETHER = "together"
"""Name of the row of one encoder that was trained on all tasks with their labels."""

ALONE = (
    *("breadcrumbs", "dare", "della", "magmax", "pcb", "consensus", "sce", "model-stock"),
    *("multislerp", "karcher", "iso-c", "iso-cts", "tsv-m", "wudi", "orthomerge"),
    *("orthomerge:variant=global", "directional", "emr", "tall-mask"),
    *("fisher", "regmean", "regmean++"),
)
"""Merges that are compared as they are, with their defaults; all there are but for those of two."""

_PRECISION = "auto"
"""Of what is evaluated: in half the time where the machine is made for bfloat16."""

_LAMBDAS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.8", "1")
_TIES_LAMBDAS, _DENSITIES = ("0.3", "0.6", "1"), ("0.1", "0.2")


@dataclass(frozen=True)
class Suite:
    """What is compared on: a base, an expert a task, samples of each."""

    name: str
    base: Path
    experts: Mapping[str, Path]  # by task, which is the folder's name; trained when asked for
    samples: Path  # unlabeled/, labeled/ and validation/, disjoint; held-out/ is labeled's alone
    about: Mapping[str, Any]  # for the record
    together: Callable[[], Path]  # models of one encoder trained on all tasks, by task
    normalises: bool = False  # whether heads do so with features, so that only rotations fit

    @property
    def labeled(self) -> Path:
        """What is evaluated."""
        return self.samples / "labeled"

    def unlabeled(self, *, transductive: bool) -> Path:
        """What merges adapt to: as in the literature that which is evaluated, or other samples."""
        return self.samples / ("held-out" if transductive else "unlabeled")


def evaluated(there: int, counts: Mapping[str, int]) -> int:
    """How many samples of a test side are evaluated; those after them are the validation split.

    The split is whole where there are few, but never more than half of what is there.
    """
    return min(counts["test"], max(there - counts["validation"], (there + 1) // 2))


@dataclass(frozen=True)
class Chosen:
    """Settings of the merges that alignments stand on, as rows name them."""

    task_arithmetic: str = "task-arithmetic"
    ties: str = "ties"

    @property
    def bases(self) -> tuple[str, ...]:
        """The merges, in the order of the paper."""
        named = {"task-arithmetic": self.task_arithmetic, "ties": self.ties}
        return tuple(named.get(base, base) for base in BASES)


@dataclass(frozen=True)
class Plan:
    """Which rows there are."""

    steps: int  # of moma's alignment and of what lowers entropy; the paper's has twice as many
    batch_size: int  # of each task
    chosen: Chosen = Chosen()
    own_length: bool = False  # whether there is a row of moma with its own steps and batch size
    linear: bool = True  # whether there are rows of linear maps

    @property
    def methods(self) -> list[str]:
        """The rows, as `moma compare --methods` takes them."""
        steps, size = f"steps={self.steps}", f"batch-size={self.batch_size}"
        adapted = (
            f"adamerging:{steps}:{size}",
            f"concrete-task-arithmetic:{steps}:{size}",
            f"concrete-adamerging:mask-steps={self.steps}:{steps}:{size}",
        )
        ends = ["", *self.ends.values()]
        longer = [f"{self.chosen.task_arithmetic}+moma"] if self.own_length else []
        rows = [f"{base}{end}" for base in self.chosen.bases for end in ends]
        return [*ALONE, *adapted, *rows, *longer]

    @property
    def ends(self) -> dict[str, str]:
        """What follows a merge in the rows of its alignments, by what tables call them."""
        size = f"batch-size={self.batch_size}"
        linear = {
            "w/ linear alone": "+linear",
            "w/ MOMA, linear": f"+moma:transform=linear:steps={self.steps}:{size}",
        }
        return {
            "w/ Surgery": "+surgery",
            "w/ ProbSurgery": "+probsurgery",
            "w/ Aligned-C": "+aligned-c",
            "w/ orthogonal alone": "+orthogonal",
            "w/ orthogonal alone, heads unseen": "+orthogonal:objective=features",
            "w/ MOMA as in the paper": f"+paper:steps={2 * self.steps}:{size}",
            "w/ MOMA": f"+moma:steps={self.steps}:{size}",
            **(linear if self.linear else {}),
        }

    @property
    def swept(self) -> list[str]:
        """The rows that are repeated with shares of the samples or of the mask."""
        length = f"steps={self.steps}:batch-size={self.batch_size}"
        return [f"{self.chosen.task_arithmetic}+moma:{length}"]


@dataclass(frozen=True)
class Setting:
    """How all rows are made."""

    folder: Path  # of all results
    seed: int
    transductive: bool
    listener: Listener


def compare_on(
    suite: Suite, methods: Sequence[str], setting: Setting, sweeps: Sweeps | None = None
) -> CompareReport:
    """All rows; what the folder has of them is not done again."""
    return compare(
        list(suite.experts.values()),
        base=suite.base,
        data=suite.unlabeled(transductive=setting.transductive),
        evaluation=suite.labeled,
        methods=methods,
        sweeps=sweeps,
        output=setting.folder / "comparison",
        options=Options(
            seed=setting.seed, precision=_PRECISION, cache=str(setting.folder / "features")
        ),
        run=run_warm,
        listener=setting.listener,
    )


def trained_together(suite: Suite, listener: Listener) -> Row:
    """The row of traditional multi-task learning: what merging would reach at best."""
    folder = suite.together()
    sources = task_sources(suite.labeled, list(suite.experts))
    scores = {}
    for task, source in sources.items():
        report = evaluate(
            [folder / task],
            data=[f"{task}={source}"],
            precision=_PRECISION,
            listener=listener,
        )
        scores |= report.scores[str(folder / task)]
    return Row(TOGETHER, "Traditional MTL", indented=False, scores=scores)


def choose(suite: Suite, setting: Setting) -> Chosen:
    """Choose lambda of task arithmetic, and lambda and density of TIES, on the validation split."""
    merges = [f"task-arithmetic:lambda={lam}" for lam in _LAMBDAS]
    merges += [f"ties:lambda={lam}:density={one}" for lam in _TIES_LAMBDAS for one in _DENSITIES]
    report = compare(
        list(suite.experts.values()),
        base=suite.base,
        evaluation=suite.samples / "validation",
        methods=merges,
        output=setting.folder / "choice",
        options=Options(seed=setting.seed, precision=_PRECISION),
        run=run_warm,
        listener=setting.listener,
    )
    best = {
        method: max(
            (row for row in report.rows if row.name.partition(":")[0] == method),
            key=lambda row: row.average or 0.0,
        ).name
        for method in ("task-arithmetic", "ties")
    }
    return Chosen(best["task-arithmetic"], best["ties"])
