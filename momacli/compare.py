"""Compare methods on the same experts and samples, as the paper's Tables 2, 3 and 5 do."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.naming import Named, find_base, named_inputs
from momacli.checkpoint.reader import task_name
from momacli.comparing.alone import alone_in
from momacli.comparing.commands import MODELS, Common
from momacli.comparing.drawing import draw_sweeps
from momacli.comparing.making import Making
from momacli.comparing.overlap import find_overlaps
from momacli.comparing.plan import FINE_TUNED, PRE_TRAINED, Keys, Sweeps, Wanted, all_wanted
from momacli.comparing.process import Run, run_process
from momacli.comparing.report import CompareReport, reported
from momacli.comparing.rows import STATE, Finished, Row, check_folder
from momacli.comparing.specs import Spec, Step, read_specs
from momacli.data.folders import task_sources
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.errors import CheckpointError, ConflictError, ModelError, MomaError, UsageError
from momacli.evaluate import Prepared, evaluate
from momacli.merge import merge
from momacli.merging.report import MergeReport
from momacli.models.device import check_precision
from momacli.progress import Listener, Notice, Progress, ignore
from momacli.statistics.score import Score

if TYPE_CHECKING:
    from momacli.data.folders import Data


@dataclass(frozen=True)
class Options:
    """What else can be said of models and samples, as `merge`, `align` and `evaluate` take it.

    evaluated: samples of each task that are evaluated at most.
    precision: of what is evaluated. That of an alignment's steps is an option of its row.
    """

    reading: Reading = field(default_factory=Reading)
    evaluated: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    config: str | None = None
    heads: tuple[str, ...] = ()
    pooling: str | None = None
    features: str | None = None
    cache: str | None = None


def compare(
    experts: Sequence[str | Path],
    *,
    evaluation: "Data",
    data: "Data | None" = None,
    base: str | Path | None = None,
    methods: Sequence[str] = ("paper",),
    sweeps: Sweeps | None = None,
    output: str | Path = "comparison",
    options: Options | None = None,
    keep_models: bool = False,
    force: bool = False,
    dry_run: bool = False,
    run: Run = run_process,
    listener: Listener = ignore,
) -> CompareReport:
    """Merge, align and evaluate by several methods; each in processes of its own.

    experts, base: as `merge` takes them.
    data: unlabeled samples, as `align` takes them; needed where a method is aligned.
    evaluation: labeled samples, as `evaluate` takes them.
    methods: such as "average", "ties:density=0.1+moma:steps=100"; "paper" are the rows of its
        Table 2, "all" every method with its defaults. A method of "paper" or "all" that does not
        fit the experts is left out, and that is said; one that was named is an error.
    sweeps: settings at which the alignments are repeated.
    output: a folder; its `rows.json` keeps what is finished, so that the same call goes on where
        a run was stopped, and does nothing that is done. What failed is tried again.
    keep_models: leave the models in `models/`; otherwise each goes when it has been evaluated.
    run: how commands are run.

    A row's time is that of merging and aligning, without the fine-tuned features, which are
    computed once for all; its memory the largest peak of a process that did so. A method that
    fails is a row with its error. Raises MomaErrors for what no row could be made with.
    """
    started = time.monotonic()
    options, sweeps = options or Options(), sweeps or Sweeps()
    check_precision(options.precision)
    tell = _each_once(listener)
    specs, named = read_specs(methods)
    sweeps.check(specs)
    _check_data(specs, data)
    check_folder(Path(output), force=force)
    base_input, inputs = find_base(named_inputs(experts), base)
    common = _common(inputs, base_input, data, Path(output), options)
    tasks = _check_inputs(common, tell)
    wanted = all_wanted(_fitting(common, specs, named, tell), sweeps)
    held_out = task_sources(evaluation, tasks)
    seen = {} if data is None else task_sources(data, tasks)
    overlaps = [str(one) for one in find_overlaps(seen, held_out, options.reading.columns)]
    if overlaps:
        tell(Notice(f"samples to adapt to are evaluated, too: {'; '.join(overlaps)}"))
    if dry_run:
        report = reported(common.folder, tasks, wanted, {}, sweeps.data_ratios)
        return replace(report, overlaps=overlaps, dry_run=True)
    paths = {item.name: item.path for item in inputs} | {"base": base_input.path}
    scoring = Scoring(held_out, options, tell)
    with alone_in(common.folder):
        finished = Finished(common.folder / STATE, listener=tell)
        finished.begin()
        making = Making(
            common=common,
            keys=Keys(common, paths, seen, held_out, (options.evaluated, options.precision)),
            finished=finished,
            run=run,
            evaluate=scoring.of_model,
            keep_models=keep_models,
            named={base for spec in named for base in (spec, spec.base)} | {PRE_TRAINED},
            total=len(wanted) + 1,
            listener=tell,
        )
        _make(making, wanted, inputs, scoring)
        made = [one for one in wanted if one.name not in making.left_out]
        report = reported(common.folder, tasks, made, making.rows, sweeps.data_ratios)
        figures = draw_sweeps(report)
    seconds = time.monotonic() - started
    return replace(report, overlaps=overlaps, figures=figures, seconds=seconds)


def _check_data(specs: Sequence[Spec], data: "Data | None") -> None:
    hungry = [str(spec) for spec in specs if spec.sees_samples]
    if data is None and hungry:
        raise UsageError(
            f"{len(hungry)} of {len(specs)} methods need unlabeled samples",
            details=hungry,
            hint="give them with --data, or name methods without",
        )


def _common(
    inputs: Sequence[Named],
    base: Named,
    data: "Data | None",
    folder: Path,
    options: Options,
) -> Common:
    given = [data] if isinstance(data, (str, Path)) else list(data or ())
    return Common(
        experts=[f"{item.name}={item.path}" for item in inputs],
        base=str(base.path),
        data=[str(item) for item in given],
        folder=folder,
        as_folders=all(item.path.is_dir() for item in inputs),
        reading=options.reading,
        seed=options.seed,
        device=options.device,
        config=options.config,
        heads=options.heads,
        pooling=options.pooling,
        features=options.features,
        cache=options.cache,
    )


def _check_inputs(common: Common, listener: Listener) -> tuple[str, ...]:
    """Refuse inputs that cannot be merged, or have no heads; returns the tasks."""
    report = _planned(common, PRE_TRAINED.merge, listener)
    if not report.carried:
        raise UsageError(
            "the experts have no heads, so no accuracy can be told",
            hint="say which tensors are the heads with --heads",
        )
    return report.tasks


def _planned(common: Common, step: Step, listener: Listener = ignore) -> MergeReport:
    """What a merge would do, from headers alone. Raises MomaErrors for what does not fit."""
    sees = step.sees_samples
    return merge(
        common.experts,
        base=common.base,
        method=step.name,
        options=step.own_options,
        scope=step.scope,
        heads=common.heads,
        config=common.config,
        data=common.data if sees else None,
        reading=common.reading if sees else None,
        pooling=common.pooling if sees else None,
        features=common.features if sees else None,
        output=common.model("planned"),
        dry_run=True,
        listener=listener,
    )


def _fitting(
    common: Common, specs: Sequence[Spec], named: set[Spec], listener: Listener
) -> list[Spec]:
    """Those whose merges fit the experts. Raises UsageError if one was named that does not."""
    unfit: dict[Spec, MomaError] = {}
    for base in dict.fromkeys(spec.base for spec in specs):
        try:
            _planned(common, base.merge)
        except MomaError as error:
            unfit[base] = error
    wrong = [spec.base for spec in named if spec.base in unfit]
    if wrong:
        raise UsageError(
            "methods that do not fit these experts",
            details=sorted(f"{base}: {unfit[base].message}" for base in dict.fromkeys(wrong)),
        )
    for base, reason in unfit.items():
        listener(Notice(f"left out {base}: {reason.message}"))
    return [spec for spec in specs if spec.base not in unfit]


def _make(
    making: Making, wanted: Sequence[Wanted], inputs: Sequence[Named], scoring: "Scoring"
) -> None:
    models = making.common.folder / MODELS
    try:
        _fine_tuned(making, inputs, scoring)
        for base in dict.fromkeys(one.spec.base for one in wanted):
            making.group(base, [one for one in wanted if one.spec.base == base])
    except KeyboardInterrupt:
        done = len([row for row in making.rows.values() if row.error is None])
        making.listener(
            Notice(
                f"stopped; {done} of {making.total} rows are finished and kept in "
                f"{making.finished.path}; the same command goes on from there"
            )
        )
        raise
    with suppress(OSError):  # where models are kept, or there is none
        models.rmdir()


def _fine_tuned(making: Making, inputs: Sequence[Named], scoring: "Scoring") -> None:
    """The row of the experts themselves, each on its own task."""
    blank = Row(FINE_TUNED, "Fine-tuned", indented=False)
    key = making.keys.of(FINE_TUNED)
    if making.take_up(FINE_TUNED, key):
        return
    scores: dict[str, Score] = {}
    try:
        for item in inputs:
            scores[item.name] = _score_of_expert(making, item, scoring)
    except MomaError as error:
        making.fail(FINE_TUNED, blank, error)
    else:
        making.keep(FINE_TUNED, key, replace(blank, scores=scores))


def _score_of_expert(making: Making, item: Named, scoring: "Scoring") -> Score:
    """An expert alone; what is no model by itself, as an adapter is not, on its base."""
    try:
        return scoring.of_one(item.path, task_name(item.path), item.name)
    except (CheckpointError, ConflictError, ModelError):
        alone = making.common.model(f"{FINE_TUNED}-{item.name}")
        step = Step("task-arithmetic", (("lambda", "1"),))
        making.run(making.common.merge(step, alone, [f"{item.name}={item.path}"]), ignore)
        score = scoring.of_one(alone, item.name, item.name)
        shutil.rmtree(alone.parent)
        return score


@dataclass(frozen=True)
class Scoring:
    """Counts correct answers; samples are prepared once for all models."""

    held_out: Mapping[str, Path]
    options: Options
    listener: Listener
    prepared: Prepared = field(default_factory=dict)

    def of_model(self, path: Path) -> Mapping[str, Score]:
        """Scores of a model of all tasks."""
        return self._scores(path, self.held_out)

    def of_one(self, path: Path, name: str, task: str) -> Score:
        """The score of a model of one task that goes by a name of its own."""
        (score,) = self._scores(path, {name: self.held_out[task]}).values()
        return score

    def _scores(self, path: Path, held_out: Mapping[str, Path]) -> Mapping[str, Score]:
        options = self.options
        sampling = Sampling(options.evaluated, None, options.seed)
        report = evaluate(
            [path],
            data=[f"{task}={source}" for task, source in held_out.items()],
            reading=replace(options.reading, sampling=sampling),
            config=options.config,
            pooling=options.pooling,
            features=options.features,
            heads=options.heads,
            device=options.device,
            precision=options.precision,
            prepared=self.prepared,
            listener=self.listener,
        )
        return report.scores[str(path)]


def _each_once(listener: Listener) -> Listener:
    """Hand on what processes say, but no remark twice, also of another file of the same."""
    told: set[str] = set()

    def tell(event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            remark = event.text.partition(" (from ")[0]
            if remark in told:
                return
            told.add(remark)
        listener(event)

    return tell
