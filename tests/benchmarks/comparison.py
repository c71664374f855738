"""The methods that are compared on every suite, by `moma compare`, and what is kept of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from momacli.comparing.report import CompareReport
from momacli.comparing.rows import Row
from momacli.comparing.specs import BASES
from momacli.progress import Listener
from momacli.statistics.score import Score
from tests.benchmarks.machine import circumstances

ALONE = (
    *("breadcrumbs", "dare", "della", "magmax", "pcb", "consensus", "sce", "model-stock"),
    *("multislerp", "karcher", "iso-c", "iso-cts", "tsv-m", "wudi", "orthomerge"),
    *("fisher", "regmean", "regmean++"),
)
"""Merges that are compared as they are, with their defaults."""


@dataclass(frozen=True)
class Suite:
    """What is compared on: a base, an expert a task, samples of each."""

    name: str
    base: Path
    experts: Mapping[str, Path]  # by task, which is the folder's name
    unlabeled: Path
    labeled: Path  # nothing of it is in `unlabeled`
    about: Mapping[str, Any]  # for the record


@dataclass(frozen=True)
class Plan:
    """How the suite is run."""

    steps: int  # of an alignment, moma's and the paper's alike
    batch_size: int  # of each task
    seed: int = 0

    @property
    def methods(self) -> list[str]:
        """The rows, as `moma compare --methods` takes them."""
        length = f"steps={self.steps}:batch-size={self.batch_size}"
        alignments = ("surgery", "probsurgery", "orthogonal", f"paper:{length}", f"moma:{length}")
        ends = ["", *(f"+{alignment}" for alignment in alignments)]
        return [*ALONE, *(f"{base}{end}" for base in BASES for end in ends)]


def compare_on(
    suite: Suite, methods: Sequence[str], seed: int, folder: Path, listener: Listener
) -> CompareReport:
    """All rows; what `folder` has of them is not done again."""
    from momacli.compare import Options, compare

    return compare(
        list(suite.experts.values()),
        base=suite.base,
        data=suite.unlabeled,
        evaluation=suite.labeled,
        methods=methods,
        output=folder / "comparison",
        options=Options(seed=seed, cache=str(folder / "features")),
        listener=listener,
    )


def as_json(suite: Suite, plan: Plan, report: CompareReport, command: str) -> dict[str, Any]:
    """All of it for programs, and for the README, but for what rows took.

    A suite runs for hours, beside other work and with rests: other benchmarks measure costs.
    """
    return {
        "suite": suite.name,
        **circumstances(command),
        "about": dict(suite.about),
        "plan": asdict(plan),
        "tasks": list(report.tasks),
        "rows": [asdict(replace(row, seconds=None, memory=None)) for row in report.rows],
    }


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """The rows of what `as_json` made."""
    return [
        Row(**{**row, "scores": {task: Score(**one) for task, one in row["scores"].items()}})
        for row in content["rows"]
    ]
