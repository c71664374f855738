"""Merge, align and evaluate the experts of one suite in every way that is to be compared."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks.cells import Cells, digest_of_moma, read_result, write_result

Item = TypeVar("Item")

FINE_TUNED = "fine-tuned"
MERGES: Mapping[str, Mapping[str, Any]] = {"average": {}, "task-arithmetic": {}, "ties": {}}
"""The merge methods compared, and the options that a suite does not set."""

RECIPES = ("moma", "paper")


@dataclass(frozen=True)
class Suite:
    """What is compared on: a base, an expert a task, texts or images of each."""

    name: str
    base: Path
    experts: Mapping[str, Path]  # by task
    unlabeled: Path
    labeled: Path  # nothing of it is in `unlabeled`
    depends_on: str  # a hash over all of it
    about: Mapping[str, Any]  # for the record


@dataclass(frozen=True)
class Plan:
    """How the suite is run."""

    options: Mapping[str, Mapping[str, Any]]  # of each merge method
    steps: int  # of an alignment
    batch_size: int  # of each task
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    correct: Mapping[str, int]  # by task
    total: Mapping[str, int]
    seconds: float  # to align, as measured when it was done

    @property
    def accuracies(self) -> dict[str, float]:
        """By task, 0 to 1."""
        return {task: self.correct[task] / self.total[task] for task in self.correct}

    @property
    def average(self) -> float:
        """The mean over tasks."""
        return sum(self.accuracies.values()) / len(self.correct)


@dataclass(frozen=True)
class _Job:
    """One merged model and what is done with it; picklable, for other processes."""

    suite: Suite
    plan: Plan
    cells: Cells
    method: str
    recipe: str | None  # None: as it is merged
    moma: str  # hash of the program

    @property
    def name(self) -> str:
        return self.method if self.recipe is None else f"{self.method} + {self.recipe}"


def compare(suite: Suite, plan: Plan, cells: Cells, *, processes: int = 1) -> list[Row]:
    """The rows of all merges, each plain and aligned; what is in the cells is not done again."""
    moma = digest_of_moma()
    jobs = [
        _Job(suite, plan, cells, method, recipe, moma)
        for method in plan.options
        for recipe in (None, *RECIPES)
    ]
    experts = _Job(suite, plan, cells, FINE_TUNED, None, moma)
    in_parallel(_merged, [job for job in jobs if job.recipe is None], processes)
    return in_parallel(_row, [experts, *jobs], processes)


def in_parallel(
    function: Callable[[Item], Any], items: Iterable[Item], processes: int
) -> list[Any]:
    """The function's results, in order, computed in this process or in several."""
    if processes == 1:
        return [function(item) for item in items]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items))


def _merged(job: _Job) -> Path:
    """The cell of a merge; the model is its folder `merged`."""

    def make(folder: Path) -> None:
        from momacli.merge import merge

        merge(
            list(job.suite.experts.values()),
            base=job.suite.base,
            method=job.method,
            options=dict(job.plan.options[job.method]),
            seed=job.plan.seed,
            output=folder / "merged",
        )

    depends_on = [job.suite.depends_on, job.method, job.plan.options[job.method], job.plan.seed]
    return job.cells.get("merged", [*depends_on, job.moma], make)


def _aligned(job: _Job) -> Path:
    """The cell of an alignment; the model is its folder `aligned`."""
    settings = _settings(job)
    merged = _merged(job)

    def make(folder: Path) -> None:
        from momacli.align import align

        started = time.monotonic()
        report = align(
            merged / "merged",
            data=job.suite.unlabeled,
            settings=settings,
            cache=job.cells.folder / "features",
            output=folder / "aligned",
        )
        losses = {task: one.objective_after for task, one in report.tasks.items()}
        write_result(folder, {"seconds": time.monotonic() - started, "objective": losses})

    return job.cells.get("aligned", [merged.name, asdict(settings), job.moma], make)


def _settings(job: _Job) -> Any:
    from momacli.alignment.settings import Settings, paper

    plan = job.plan
    settings = Settings(steps=plan.steps, batch_size=plan.batch_size, seed=plan.seed)
    return paper(settings) if job.recipe == "paper" else settings


def _row(job: _Job) -> Row:
    """Evaluate one model, after making it where it is not there yet."""
    seconds = 0.0
    if job.method == FINE_TUNED:
        models, origin = list(job.suite.experts.values()), job.suite.depends_on
    elif job.recipe is None:
        cell = _merged(job)
        models, origin = [cell / "merged"], cell.name
    else:
        cell = _aligned(job)
        models, origin = [cell / "aligned"], cell.name
        seconds = read_result(cell)["seconds"]

    def make(folder: Path) -> None:
        from momacli.evaluate import evaluate

        scores: dict[str, Any] = {}
        for path in models:
            data = job.suite.labeled
            if job.method == FINE_TUNED:
                data = next(data.glob(f"{path.name}.*"), data / path.name)
            scores |= evaluate([path], data=data).scores[str(path)]
        write_result(
            folder,
            {
                "correct": {task: score.correct for task, score in scores.items()},
                "total": {task: score.total for task, score in scores.items()},
            },
        )

    result = read_result(job.cells.get("scores", [origin, job.suite.depends_on, job.moma], make))
    return Row(job.name, result["correct"], result["total"], seconds)


def table(rows: Sequence[Row]) -> str:
    """The rows for people; what alignment won back is of what that merge had lost."""
    best = rows[0].average
    plain = {row.name: row.average for row in rows}
    tasks = list(rows[0].correct)
    header = ["", *tasks, "average", "won back", "seconds"]
    lines = []
    for row in rows:
        merged = plain[row.name.split(" + ")[0]]
        lost = best - merged
        aligned = " + " in row.name
        won = f"{(row.average - merged) / lost:.0%}" if aligned and lost > 0 else ""
        numbers = [f"{100 * row.accuracies[task]:.1f}" for task in tasks]
        taken = f"{row.seconds:.0f}" if aligned else ""
        lines.append([row.name, *numbers, f"{100 * row.average:.1f}", won, taken])
    widths = [max(len(line[n]) for line in [header, *lines]) for n in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *lines]
    )


def as_json(suite: Suite, plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "suite": suite.name,
        "about": dict(suite.about),
        "plan": asdict(plan),
        "rows": [
            {**asdict(row), "accuracies": row.accuracies, "average": row.average} for row in rows
        ],
    }


def with_options(
    merges: Mapping[str, Mapping[str, Any]], method: str, **options: Any
) -> dict[str, Mapping[str, Any]]:
    """The merges with further options of one of them; None leaves the method its own."""
    given = {key: value for key, value in options.items() if value is not None}
    return {**merges, method: {**merges[method], **given}}
