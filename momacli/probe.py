"""Why a merge lost accuracy: what its features still hold, and which map would bring it back."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli import __version__
from momacli.data.reading import Reading
from momacli.errors import ConflictError
from momacli.probing.settings import Settings
from momacli.progress import Listener, Notice, Progress, ignore

if TYPE_CHECKING:
    from momacli.alignment.inputs import Sources
    from momacli.data.features import FeatureCache
    from momacli.data.folders import Data
    from momacli.probing.features import TaskFeatures
    from momacli.probing.findings import Curves, Places, Protocols, TaskFindings
    from momacli.probing.tables import Models


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found, by task, and where its report is, if one was written."""

    merged: Path
    output: Path | None
    page: Path | None
    tasks: "Mapping[str, TaskFindings]"
    sources: Mapping[str, Path]
    settings: Mapping[str, Any]
    device: str
    seconds: float
    compared: "Models" = field(default_factory=dict)  # models beside it, by path, then task
    dry_run: bool = False


def probe(
    merged: str | Path | None = None,
    *,
    data: "Data",
    compared: Sequence[str | Path] = (),
    settings: Settings | None = None,
    reading: Reading | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    base: str | Path | None = None,
    config: str | Path | None = None,
    pooling: str | None = None,
    features: str | None = None,
    cache: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> ProbeReport:
    """Compare the features of a merged model with those of its experts (MOMA section 3).

    merged: what `merge` or `align` wrote; default `merged/` or `merged.safetensors`.
    data: labeled samples, as `evaluate` reads them. They are split in two: maps are fitted and
        few labeled samples chosen on one part, and all is evaluated on the other.
    compared: other models of the same tasks that are evaluated in the same ways, as the paper's
        Tables 7 to 10 do; the first alone is probed further.
    output: a folder for the report: a page, figures as PNG and SVG, tables as CSV. Without
        one nothing is written and t-SNE is left out.
    cache: folder of features, default ~/.cache/moma.

    Raises MomaErrors before any work where inputs do not fit.
    """
    from momacli.alignment.inputs import default_input, open_sources
    from momacli.data.features import FeatureCache, default_cache
    from momacli.probing.output import PAGE, choose_report, settings_as_json

    started = time.monotonic()
    settings = settings or Settings()
    with ExitStack() as stack:
        path = Path(merged) if merged is not None else default_input("probe")
        sources, *others = [
            open_sources(
                stack,
                each,
                data,
                device=device,
                base=base,
                config=Path(config) if config else None,
                pooling=pooling,
                features=features,
                listener=listener,
            )
            for each in (path, *map(Path, compared))
        ]
        _check_tasks(sources, others)
        target = None
        if output is not None:
            read = [path, sources.base.path, *sources.data.values()]
            read += [one.checkpoint.path for one in sources.experts.values()]
            target = choose_report(output, inputs=read, force=force)
        report = ProbeReport(
            merged=path,
            output=target,
            page=None if target is None else target / PAGE,
            tasks={},
            sources=sources.data,
            settings=settings_as_json(settings),
            device=str(sources.device),
            seconds=0.0,
            dry_run=dry_run,
        )
        if not dry_run:
            kept = FeatureCache(Path(cache) if cache else default_cache(), listener=listener)
            report = _run(sources, others, report, settings, reading or Reading(), kept)
        return replace(report, seconds=time.monotonic() - started)


def _check_tasks(sources: "Sources", others: "Sequence[Sources]") -> None:
    tasks = set(sources.model.tasks)
    wrong = [
        f"{one.model.path}: {', '.join(sorted(one.model.tasks))}"
        for one in others
        if set(one.model.tasks) != tasks
    ]
    if wrong:
        raise ConflictError(
            f"{sources.model.path} is compared with models of other tasks than "
            f"{', '.join(sorted(tasks))}",
            details=wrong,
        )


def _run(
    sources: "Sources",
    others: "Sequence[Sources]",
    report: ProbeReport,
    settings: Settings,
    reading: Reading,
    cache: "FeatureCache",
) -> ProbeReport:
    from momacli.probing.features import load_features
    from momacli.probing.output import write_report

    tasks, curves, places = {}, {}, {}
    found = load_features(sources, reading, cache)
    for done, features in enumerate(found):
        sources.listener(Progress("probing", done, len(found), "tasks"))
        task = features.task
        tasks[task], curves[task], there = _probed(features, settings, report, sources.listener)
        if there is not None:
            places[task] = there
    sources.listener(Progress("probing", len(found), len(found), "tasks"))
    compared = {str(one.model.path): _evaluated(one, settings, reading, cache) for one in others}
    if report.output is not None:
        facts = _facts(sources, reading)
        name = str(report.merged)
        write_report(report.output, name, tasks, compared, curves, places, settings, facts)
    return replace(report, tasks=tasks, compared=compared)


def _evaluated(
    sources: "Sources", settings: Settings, reading: Reading, cache: "FeatureCache"
) -> "dict[str, Protocols]":
    """The evaluations of a model that is compared, by task, on the same samples."""
    from momacli.probing.analysis import TaskProbe
    from momacli.probing.features import load_features

    found = {}
    features = load_features(sources, reading, cache)
    for done, one in enumerate(features, start=1):
        found[one.task] = TaskProbe(one, settings).protocols()
        stage = f"evaluating {sources.model.path}"
        sources.listener(Progress(stage, done, len(features), "tasks"))
    return found


def _probed(
    features: "TaskFeatures", settings: Settings, report: ProbeReport, listener: Listener
) -> "tuple[TaskFindings, Curves, Places | None]":
    from momacli.probing.analysis import TaskProbe

    one = TaskProbe(features, settings)
    places = None
    if report.output is not None and settings.points:
        places = one.places()
        if places is None:
            listener(Notice(f"task {features.task} has too few samples for t-SNE"))
    return *one.findings(), places


def _facts(sources: "Sources", reading: Reading) -> dict[str, str]:
    """What else made the numbers, for the report."""
    from momacli.features.families import RIDGE

    recipe, sampling = sources.recipe, reading.sampling
    method = recipe.parameters.get("method")
    kept = [f"at most {sampling.count} samples a task"] if sampling.count else []
    kept += [f"{100 * sampling.share:g} % of the samples"] if sampling.share else []
    return {
        "model": f"{sources.model.path}, made by moma {recipe.command}"
        + (f" ({method})" if method else ""),
        "data": ", ".join(str(path) for path in sources.data.values()),
        "samples used": " and ".join(kept) or "all",
        "linear and affine maps": f"ridge {RIDGE:g} of the features' mean square, towards the "
        "similarity",
        "tool": f"moma {__version__}",
    }
