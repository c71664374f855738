"""The report as one page that needs nothing else: figures, tables and style are in it."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import fmean
from string import Template

from momacli.probing.findings import CONDITIONS, Agreement, FamilyFit
from momacli.probing.markup import Drawing, Section, figure, paragraph, section, table
from momacli.probing.settings import Settings
from momacli.probing.tables import (
    Models,
    Tasks,
    accuracy_cells,
    family_names,
    family_rows,
    few_shot_rows,
    percent,
)

_FAMILY_COLUMNS = (
    "family",
    "distance, fitted",
    "evaluated",
    "sq. error, fitted",
    "evaluated",
    "accuracy",
)
_SHARES = ("5 %", "50 %", "95 %")
_MAP_COLUMNS = (
    "task, map",
    "sign of det",
    "ln|det| / d",
    "s",
    "|A − sQ| / |A|",
    "|A − I| / |I|",
    "median phase",
    "largest",
    "turn of z",
)


def make_page(
    merged: str,
    tasks: Tasks,
    models: Models,
    drawings: Mapping[str, Drawing],
    settings: Settings,
    facts: Mapping[str, str],
) -> str:
    """Return the page.

    models: the one that was probed, and those beside it. drawings: by the names of `pictures`.
    facts: what else made the numbers, for the end.
    """
    embeddings = {
        name.removeprefix("embedding-"): one
        for name, one in drawings.items()
        if name.startswith("embedding-")
    }
    sections = [
        _accuracy(tasks, models, drawings["few-shot"], settings),
        _families(tasks, drawings["families"], settings),
        _agreement(tasks, drawings["agreement"]),
        _transforms(tasks, drawings["transforms"]),
        *([_embeddings(embeddings)] if embeddings else []),
        _made(tasks, settings, facts),
    ]
    template = files("momacli.probing").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"Probe of {merged}"),
        lead=escape(_lead(tasks)),
        contents="".join(
            f'<li><a href="#{one.anchor}">{escape(one.heading)}</a></li>' for one in sections
        ),
        sections="\n".join(section(one) for one in sections),
    )


def _lead(tasks: Tasks) -> str:
    each = list(tasks.values())
    finetuned = fmean(one.finetuned.accuracy for one in each)
    merged = fmean(one.merged.accuracy for one in each)
    orthogonal = fmean(one.families["orthogonal"].accuracy.accuracy for one in each)
    linear = fmean(one.families["linear"].accuracy.accuracy for one in each)
    count = f"{len(each)} tasks" if len(each) > 1 else "one task"
    return (
        f"On {count} the fine-tuned models are right in {percent(finetuned)} % of the evaluated "
        f"samples and the merged model in {percent(merged)} %. With its features mapped to the "
        f"fine-tuned ones before the same heads, it is {percent(orthogonal)} % with an orthogonal "
        f"map a task and {percent(linear)} % with a linear one."
    )


def _accuracy(tasks: Tasks, models: Models, drawing: Drawing, settings: Settings) -> Section:
    return Section(
        "few-shot",
        "Do the features still tell the classes apart?",
        [
            paragraph(
                "The merged encoder's features, judged without the static head: by the mean "
                "distance to a few labeled samples of each class (kNN, the paper's Eq. 6), and by "
                "heads that were trained on the fine-tuned model's answers to these samples "
                "(Aligned-C, Eq. 12). Where these are above the static head, what tells the "
                "classes apart is in the features, and the head no longer fits them."
            ),
            figure(
                drawing,
                "As the paper's Figures 3 and 12. Bars are the standard deviation over "
                f"{settings.draws} choices of the labeled samples.",
            ),
            table(
                "Accuracy in percent ± its deviation over the choices (as Tables 7 to 10)",
                ["method", *tasks, "average"],
                accuracy_cells(few_shot_rows(models)),
            ),
        ],
    )


def _families(tasks: Tasks, drawing: Drawing, settings: Settings) -> Section:
    fitted = (
        "Fitted on the very samples they are evaluated on, as in the paper."
        if settings.transductive
        else "Fitted on one part of the samples without their labels, evaluated on the other."
    )
    rows = []
    for name in family_names(tasks):
        found = [one.families[name] for one in tasks.values()]
        rows.append([name, *_fit_cells(found)])
    return Section(
        "families",
        "What kind of map leads back to the fine-tuned features?",
        [
            paragraph(
                "For each task the best map A z + b of each family of Table 1, for the squared "
                "distance to the fine-tuned features and in closed form, from the most rigid "
                f"family to the freest. {fitted}"
            ),
            figure(drawing, "As the paper's Figure 4. (b): large points are averages."),
            table(
                "Averages over tasks. Distance: E|A z + b − z_t| (Eq. 7). Squared error: in "
                "percent of the fine-tuned features' square",
                _FAMILY_COLUMNS,
                rows,
            ),
            table(
                "Accuracy of the fine-tuned head on the mapped features, in percent",
                ["family", *tasks, "average"],
                accuracy_cells(family_rows(tasks)),
            ),
        ],
    )


def _fit_cells(found: Sequence[FamilyFit]) -> list[str]:
    return [
        _three_digits(fmean(one.distance_fitted for one in found)),
        _three_digits(fmean(one.distance for one in found)),
        percent(fmean(one.error_fitted for one in found)),
        percent(fmean(one.error for one in found)),
        percent(fmean(one.accuracy.accuracy for one in found)),
    ]


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _agreement(tasks: Tasks, drawing: Drawing) -> Section:
    rows = [
        [f"{task}, {name}", *_agreement_cells(found.agreement[name])]
        for task, found in tasks.items()
        for name in CONDITIONS
    ]
    return Section(
        "agreement",
        "How far are the features from each other?",
        [
            paragraph(
                "For each evaluated sample, u is its merged feature, raw or mapped, and v its "
                "fine-tuned one: cos(u, v) compares directions, coef(u, v) = u·v / |v|² is the "
                "length of u along v in units of v. Both are 1 where the two are equal."
            ),
            figure(drawing, "As the paper's Figure 5: kernel density estimates over all tasks."),
            table(
                "Mean ± standard deviation, and what 5 %, 50 % and 95 % of the samples are below",
                ["task, features", "cosine", *_SHARES, "coefficient", *_SHARES],
                rows,
            ),
        ],
    )


def _agreement_cells(found: Agreement) -> list[str]:
    return [
        cell
        for one in (found.cosine, found.coefficient)
        for cell in (
            f"{one.mean:.3f} ± {one.deviation:.3f}",
            f"{one.low:.3f}",
            f"{one.median:.3f}",
            f"{one.high:.3f}",
        )
    ]


def _transforms(tasks: Tasks, drawing: Drawing) -> Section:
    rows = []
    for task, found in tasks.items():
        for name, close in found.closeness.items():
            logarithm = close.log_determinant
            rows.append(
                [
                    f"{task}, {name}",
                    {1: "+", 0: "0", -1: "−"}[close.determinant],
                    "−∞" if logarithm is None else f"{round(logarithm, 2) + 0:.2f}",
                    f"{close.scale:.2f}",
                    f"{close.from_similarity:.2f}",
                    f"{close.from_identity:.2f}",
                    f"{close.median_phase:.0f}°",
                    f"{close.largest_phase:.0f}°",
                    f"{close.turn:.0f}°",
                ]
            )
    return Section(
        "transforms",
        "How close are the maps to a rotation?",
        [
            paragraph(
                "Q is the orthogonal matrix nearest to A, and s the mean of A's singular values. "
                "An orthogonal A is a rotation where its determinant is +1, and also mirrors "
                "where it is −1. Eigenphases say how far Q turns each of its planes; many of them "
                "are in directions that the features hardly use, where anything fits, so the last "
                "column has the mean angle between a feature z and A z."
            ),
            figure(drawing, "Eigenphases of the orthogonal maps, singular values of the linear."),
            table(
                "The maps of each task",
                _MAP_COLUMNS,
                rows,
            ),
        ],
    )


def _embeddings(drawings: Mapping[str, Drawing]) -> Section:
    return Section(
        "embeddings",
        "What it looks like",
        [
            paragraph(
                "Evaluated samples in the plane by t-SNE, as the paper's Figures 1 and 2: "
                "fine-tuned features as circles, merged ones as triangles, before and after the "
                "orthogonal map. All three kinds of features of a task are embedded together, so "
                "the circles are at the same places on both sides. Distances between clusters, "
                "and their sizes, mean little in t-SNE."
            ),
            *(figure(one, f"Task {task}.") for task, one in drawings.items()),
        ],
    )


def _made(tasks: Tasks, settings: Settings, facts: Mapping[str, str]) -> Section:
    counts = ", ".join(f"{t}: {one.fitted} + {one.evaluated}" for t, one in tasks.items())
    own = {
        "samples, fitted + evaluated": counts,
        "parts": (
            "transforms were fitted on the evaluated samples (transductive)"
            if settings.transductive
            else f"{100 * settings.fit_share:g} % of each class's samples to fit on, the others to "
            "evaluate on; no sample is in both"
        ),
        "few labeled samples": f"chosen from the first part, {settings.draws} times",
        "Aligned-C": f"{settings.steps} steps of Adam",
        "seed": str(settings.seed),
    }
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in {**own, **facts}.items()
    )
    return Section("made", "How this was made", [f"<dl>{items}</dl>"])
