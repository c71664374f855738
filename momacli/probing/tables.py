"""Findings as tables: rows for people, in percent, and tidy rows for programs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev

from momacli.probing.findings import (
    CONDITIONS,
    RAW,
    FamilyFit,
    FewShot,
    Protocols,
    TaskFindings,
)

Tasks = Mapping[str, TaskFindings]

Models = Mapping[str, Mapping[str, Protocols]]
"""How several models do, by task."""


@dataclass(frozen=True)
class Row:
    """One method: its accuracy for each task, 0 to 1, and how far it varies where it is drawn."""

    name: str
    accuracies: Sequence[float]
    deviations: Sequence[float] | None = None
    of_average: float = 0.0  # the deviation of the average, where there are deviations

    @property
    def average(self) -> float:
        """The mean over tasks, all alike."""
        return fmean(self.accuracies)


def few_shot_rows(models: Models) -> list[Row]:
    """The rows of Tables 7 to 10: each model, below it each protocol at each number of samples."""
    first = list(next(iter(models.values())).values())
    rows = [Row("fine-tuned", [one.finetuned.accuracy for one in first])]
    for name, tasks in models.items():
        each = list(tasks.values())
        rows.append(Row(name, [one.merged.accuracy for one in each]))
        for shots in each[0].knn:
            rows.append(_drawn(f"+ kNN, {shots} a class", [one.knn[shots] for one in each]))
        for shots in each[0].aligned_c:
            found = [one.aligned_c[shots] for one in each]
            rows.append(_drawn(f"+ Aligned-C, {shots} a class", found))
    return rows


def _drawn(name: str, found: Sequence[FewShot]) -> Row:
    means, deviations = [one.mean for one in found], [one.deviation for one in found]
    return Row(name, means, deviations, averaged(found)[1])


def averaged(found: Sequence[FewShot]) -> tuple[float, float]:
    """The mean over tasks, and its deviation over the choices."""
    averages = [fmean(each) for each in zip(*(one.accuracies for one in found), strict=True)]
    return fmean(averages), pstdev(averages)


def models_of(merged: str, tasks: Tasks, others: Models) -> Models:
    """The probed model and those beside it, by what tables call them."""
    return {merged if others else "merged": tasks, **others}


def family_rows(tasks: Tasks) -> list[Row]:
    """A row for each family, from the most rigid to the freest."""
    each = list(tasks.values())
    return [
        Row(f"+ {name}", [one.families[name].accuracy.accuracy for one in each])
        for name in family_names(tasks)
        if name != RAW
    ]


def family_names(tasks: Tasks) -> list[str]:
    """Raw features, then the families: the paper's order turned round."""
    found = next(iter(tasks.values())).families
    return [RAW, *reversed([name for name in found if name != RAW])]


def tidy_tables(tasks: Tasks, models: Models) -> dict[str, list[list[object]]]:
    """Every number once, by table; the first row of each is its header.

    models: the one that was probed, and those beside it.
    """
    return {
        "accuracy": [
            ["task", "evaluated", "fine-tuned", *models],
            *(
                [task, one.evaluated, one.finetuned.accuracy]
                + [each[task].merged.accuracy for each in models.values()]
                for task, one in tasks.items()
            ),
        ],
        "few-shot": [
            ["model", "task", "protocol", "samples a class", "samples", "accuracy", "deviation"],
            *([name, *row] for name, each in models.items() for row in _few_shot(each)),
        ],
        "families": [
            ["task", "family", *_FAMILY_COLUMNS],
            *(
                [task, name, *_numbers(one)]
                for task, found in tasks.items()
                for name, one in found.families.items()
            ),
        ],
        "agreement": [
            ["task", "features", "measure", "mean", "deviation", "5 %", "median", "95 %"],
            *_agreement(tasks),
        ],
        "transforms": _transforms(tasks),
    }


_FAMILY_COLUMNS = (
    "distance, fitted",
    "distance, evaluated",
    "squared error, fitted",
    "squared error, evaluated",
    "accuracy",
)


def _numbers(one: FamilyFit) -> tuple[float, ...]:
    return (
        one.distance_fitted,
        one.distance,
        one.error_fitted,
        one.error,
        one.accuracy.accuracy,
    )


def _few_shot(tasks: Mapping[str, Protocols]) -> Iterator[list[object]]:
    for task, found in tasks.items():
        for protocol, results in (("kNN", found.knn), ("Aligned-C", found.aligned_c)):
            for shots, one in results.items():
                yield [task, protocol, shots, one.support, one.mean, one.deviation]


def _agreement(tasks: Tasks) -> Iterator[list[object]]:
    for task, found in tasks.items():
        for name in CONDITIONS:
            for measure, values in asdict(found.agreement[name]).items():
                yield [task, name, measure, *values.values()]


def _transforms(tasks: Tasks) -> list[list[object]]:
    rows: list[list[object]] = []
    header: list[object] = []
    for task, found in tasks.items():
        for name, close in found.closeness.items():
            values = asdict(close)
            header = ["task", "transform", *(key.replace("_", " ") for key in values)]
            rows.append([task, name, *values.values()])
    return [header, *rows]


def percent(value: float) -> str:
    """An accuracy for people."""
    return f"{100 * value:.1f}"


def accuracy_cells(
    rows: Sequence[Row], *, deviation: Callable[[float], str] = lambda value: f" ± {percent(value)}"
) -> list[list[str]]:
    """Name, a cell a task, and the average, in percent."""
    cells = []
    for row in rows:
        each = [percent(value) for value in (*row.accuracies, row.average)]
        if row.deviations is not None:
            spread = (*row.deviations, row.of_average)
            each = [a + deviation(d) for a, d in zip(each, spread, strict=True)]
        cells.append([row.name, *each])
    return cells
