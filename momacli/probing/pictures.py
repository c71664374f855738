"""The figures of a probe, in the order of the page, with what they show in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from momacli.figures.agreement import Values, draw_agreement
from momacli.figures.embedding import draw_embedding
from momacli.figures.families import Family, draw_families
from momacli.figures.few_shot import Panel, draw_few_shot
from momacli.figures.figure import Figure
from momacli.figures.transforms import draw_transforms
from momacli.probing.findings import CONDITIONS, Curves, FewShot, Places, TaskFindings
from momacli.probing.tables import Tasks, averaged, family_names, percent


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file, and its content for those who do not see it."""

    name: str
    figure: Figure
    alt: str


def pictures(
    tasks: Tasks, curves: Mapping[str, Curves], places: Mapping[str, Places]
) -> Iterator[Picture]:
    """Draw all figures, one after the other."""
    yield Picture("few-shot", _few_shot(tasks), _few_shot_in_words(tasks))
    yield Picture("families", _families(tasks), _families_in_words(tasks))
    yield Picture("agreement", _agreement(curves), _agreement_in_words(tasks))
    yield Picture("transforms", _transforms(curves), _transforms_in_words(tasks))
    for task, found in places.items():
        yield Picture(f"embedding-{task}", _embedding(tasks[task], found), _embedded(task))


def _few_shot(tasks: Tasks) -> Figure:
    panels = [
        Panel(
            task,
            {"fine-tuned": one.finetuned.accuracy, "merged, static head": one.merged.accuracy},
            {"kNN": _curve(one.knn), "Aligned-C": _curve(one.aligned_c)},
        )
        for task, one in tasks.items()
    ]
    if len(panels) > 1:
        panels.append(_average(list(tasks.values())))
    return draw_few_shot(panels, list(next(iter(tasks.values())).knn))


def _curve(found: Mapping[str, FewShot]) -> list[tuple[float, float]]:
    return [(one.mean, one.deviation) for one in found.values()]


def _average(each: Sequence[TaskFindings]) -> Panel:
    first = each[0]
    return Panel(
        "average",
        {
            "fine-tuned": fmean(one.finetuned.accuracy for one in each),
            "merged, static head": fmean(one.merged.accuracy for one in each),
        },
        {
            "kNN": [averaged([one.knn[shots] for one in each]) for shots in first.knn],
            "Aligned-C": [
                averaged([one.aligned_c[shots] for one in each]) for shots in first.aligned_c
            ],
        },
    )


def _few_shot_in_words(tasks: Tasks) -> str:
    each = list(tasks.values())
    words = [
        f"Average accuracy: fine-tuned {percent(fmean(o.finetuned.accuracy for o in each))} %, "
        f"merged with its static head {percent(fmean(o.merged.accuracy for o in each))} %."
    ]
    for shots in each[0].knn:
        knn = percent(fmean(one.knn[shots].mean for one in each))
        trained = percent(fmean(one.aligned_c[shots].mean for one in each))
        words.append(f"With {shots} labeled samples a class, kNN {knn} %, Aligned-C {trained} %.")
    return " ".join(words)


def _families(tasks: Tasks) -> Figure:
    each = list(tasks.values())
    families = [
        Family(
            name,
            [one.families[name].error_fitted for one in each],
            [one.families[name].error for one in each],
            [one.families[name].accuracy.accuracy for one in each],
        )
        for name in family_names(tasks)
    ]
    levels = {
        "fine-tuned": fmean(one.finetuned.accuracy for one in each),
        "merged": fmean(one.merged.accuracy for one in each),
    }
    return draw_families(families, list(tasks), levels)


def _families_in_words(tasks: Tasks) -> str:
    words = [
        f"{name}: {100 * fmean(one.families[name].error for one in tasks.values()):.0f} % error, "
        f"{percent(fmean(one.families[name].accuracy.accuracy for one in tasks.values()))} % right"
        for name in family_names(tasks)
    ]
    return "Averages on the evaluated samples. " + "; ".join(words) + "."


def _agreement(curves: Mapping[str, Curves]) -> Figure:
    cosines: dict[str, Values] = {
        name: [one.cosines[name].double().numpy() for one in curves.values()] for name in CONDITIONS
    }
    coefficients: dict[str, Values] = {
        name: [one.coefficients[name].double().numpy() for one in curves.values()]
        for name in CONDITIONS
    }
    return draw_agreement(cosines, coefficients)


def _agreement_in_words(tasks: Tasks) -> str:
    words = []
    for name in CONDITIONS:
        found = [one.agreement[name] for one in tasks.values()]
        words.append(
            f"{name}: mean cosine {fmean(one.cosine.mean for one in found):.2f}, "
            f"mean coefficient {fmean(one.coefficient.mean for one in found):.2f}"
        )
    return "Distributions over the evaluated samples. " + "; ".join(words) + "."


def _transforms(curves: Mapping[str, Curves]) -> Figure:
    return draw_transforms(
        {task: one.phases.double().numpy() for task, one in curves.items()},
        {task: one.stretches.double().numpy() for task, one in curves.items()},
    )


def _transforms_in_words(tasks: Tasks) -> str:
    words = []
    for task, one in tasks.items():
        close = one.closeness["orthogonal"]
        words.append(f"{task}: median eigenphase {close.median_phase:.0f} degrees")
    return (
        "Eigenphases of the orthogonal maps and singular values of the linear ones, a line a "
        "task. " + "; ".join(words) + "."
    )


def _embedding(found: TaskFindings, places: Places) -> Figure:
    orthogonal = found.families["orthogonal"].accuracy.accuracy
    return draw_embedding(
        places.finetuned.numpy(),
        places.merged.numpy(),
        places.aligned.numpy(),
        places.labels.numpy(),
        classes=found.classes,
        before=f"merged ({percent(found.merged.accuracy)} %)",
        after=f"after the orthogonal map ({percent(orthogonal)} %)",
    )


def _embedded(task: str) -> str:
    return (
        f"Task {task}: fine-tuned and merged features of the same samples in the plane by t-SNE, "
        "on the left as they are, on the right after the orthogonal map; shades stand for classes."
    )
