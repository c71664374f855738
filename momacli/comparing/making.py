"""Rows made one after another: merged, aligned, evaluated, kept, and their models removed."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from momacli.comparing.commands import Common
from momacli.comparing.plan import Keys, Wanted
from momacli.comparing.process import Done, Run
from momacli.comparing.rows import Finished, Row
from momacli.comparing.specs import Spec, Step
from momacli.errors import MomaError, UsageError
from momacli.progress import Listener, Notice, Progress
from momacli.statistics.score import Score

Evaluate = Callable[[Path], Mapping[str, Score]]
"""Scores of a model of all tasks, by task."""

_ORTHOGONAL = Step("orthogonal")


@dataclass(frozen=True)
class Made:
    """A model on disk and what it took."""

    path: Path
    report: Mapping[str, Any] = field(default_factory=dict)
    added: int = 0  # parameters
    seconds: float = 0.0
    memory: int | None = None  # bytes
    gpu_memory: int | None = None

    def then(self, path: Path, done: Done) -> "Made":
        """What another command made of it."""
        return Made(
            path,
            done.report,
            self.added + added_parameters(done.report),
            self.seconds + float(done.report["seconds"]),
            max(filter(None, (self.memory, done.memory)), default=None),
            max(filter(None, (self.gpu_memory, done.gpu_memory)), default=None),
        )


def added_parameters(report: Mapping[str, Any]) -> int:
    """Parameters that a command's output has beyond the merged model, of all tasks together.

    Bits that tell tasks apart count by 32.
    """
    bits = int(report.get("stored_bits") or 0)
    return -(-bits // 32) + sum(map(int, (report.get("added") or {}).values()))


@dataclass
class Making:
    """Makes what is wanted and is not finished yet; `rows` holds all of it in the end."""

    common: Common
    keys: Keys
    finished: Finished
    run: Run
    evaluate: Evaluate
    keep_models: bool
    named: Collection[Spec]  # of which it is a failure that they do not fit the experts
    total: int  # rows in all
    listener: Listener
    rows: dict[str, Row] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)  # names of rows that are not to be

    def group(self, merge: Spec, wanted: Sequence[Wanted]) -> None:
        """Make the rows of one merge. A row that fails is one with an error."""
        pending = [one for one in wanted if not self._taken_up(one)]
        if not pending:
            return
        name = Wanted(merge).name
        path = self.common.model(name)
        try:
            done = self._command(name, self.common.merge(merge.merge, path))
        except MomaError as error:
            if isinstance(error, UsageError) and merge not in self.named:
                self.left_out |= {one.name for one in pending}
                self.listener(Notice(f"left out {merge}: {error.message}"))
                return
            for one in pending:
                self.fail(one.name, one.blank(), error)
            return
        merged = Made(path).then(path, done)
        self._compute_features(path, pending)
        for spec in dict.fromkeys(one.spec for one in pending):
            alike = [one for one in pending if one.spec == spec]
            if spec.alignment is None:
                self._finish(alike[0], merged)
            else:
                self._aligned(spec, merged, alike)
        self._drop(name, keep=Wanted(merge) in wanted)

    def take_up(self, name: str, key: str) -> bool:
        """Whether a row is finished; it is taken up then."""
        row = self.finished.get(key)
        if row is not None:
            self.rows[name] = row
        return row is not None

    def keep(self, name: str, key: str, row: Row) -> None:
        """Keep a finished row, here and in the file."""
        self.finished.put(key, row)
        self.rows[name] = row
        assert row.average is not None
        self._tell(f"{name} {100 * row.average:.1f} %")

    def fail(self, name: str, blank: Row, error: MomaError) -> None:
        """A row with an error; it is tried again by the next run."""
        words = "; ".join([error.message, *error.details[:3]])
        self.rows[name] = replace(blank, error=words)
        self._tell(f"{name} failed: {words}")

    def _taken_up(self, one: Wanted) -> bool:
        kept_model = self.keep_models and one == Wanted(one.spec)
        if kept_model and not self.common.model(one.name).exists():
            return False
        return self.take_up(one.name, self._key(one))

    def _aligned(self, spec: Spec, merged: Made, wanted: Sequence[Wanted]) -> None:
        """Align a merged model, and make the rows that need the result."""
        name = str(spec)
        path = self.common.model(name)
        try:
            done = self._command(name, self.common.align(merged.path, spec, path))
        except MomaError as error:
            for one in wanted:
                self.fail(one.name, one.blank(), error)
            return
        aligned = merged.then(path, done)
        for one in wanted:
            if one.masking_rate is None:
                self._finish(one, aligned)
            else:
                self._pruned(one, one.masking_rate, merged, aligned)
        self._drop(name, keep=Wanted(spec) in wanted)

    def _pruned(self, one: Wanted, rate: float, merged: Made, aligned: Made) -> None:
        """Set some of the mask to 0, and solve the transforms anew for the encoder that is left."""
        from momacli.comparing.pruning import prune

        alignment = Path(aligned.report["alignment"])
        sparser = alignment.with_name("pruned.safetensors")
        absorbed = self.common.model(f"{one.name}-absorbed")
        path = self.common.model(one.name)
        closed = replace(one.spec, alignment=_ORTHOGONAL)
        try:
            prune(alignment, sparser, rate)
            self._command(one.name, self.common.absorb(merged.path, sparser, absorbed))
            done = self._command(one.name, self.common.align(absorbed, closed, path))
        except MomaError as error:
            self.fail(one.name, one.blank(), error)
        else:
            self._finish(one, aligned.then(path, done))
        finally:
            sparser.unlink(missing_ok=True)
        self._drop(f"{one.name}-absorbed", keep=False)
        self._drop(one.name, keep=False)

    def _compute_features(self, merged: Path, pending: Sequence[Wanted]) -> None:
        """Fill the cache with the features of all encoders, so that no row's time has them in it.

        Those of the experts are there from the second merge on.
        """
        aligned = next((one.spec for one in pending if one.spec.alignment is not None), None)
        if aligned is None:
            return
        name = "features"
        closed = replace(aligned, alignment=_ORTHOGONAL)
        with suppress(MomaError):  # the row itself will tell why
            self._command(name, self.common.align(merged, closed, self.common.model(name)))
        self._drop(name, keep=False)

    def _finish(self, one: Wanted, made: Made) -> None:
        """Evaluate a model and keep its row."""
        try:
            scores = self.evaluate(made.path)
        except MomaError as error:
            self.fail(one.name, one.blank(), error)
            return
        row = replace(
            one.blank(),
            scores=scores,
            added=made.added,
            seconds=made.seconds,
            memory=made.memory,
            gpu_memory=made.gpu_memory,
        )
        self.keep(one.name, self._key(one), row)

    def _key(self, one: Wanted) -> str:
        return self.keys.of(one.name, one.spec)

    def _tell(self, text: str) -> None:
        self.listener(Notice(f"{len(self.rows)} of {self.total}: {text}"))

    def _command(self, name: str, arguments: Sequence[str]) -> Done:
        """Run a command; its stages go by the row's name."""

        def relay(event: Progress | Notice) -> None:
            if isinstance(event, Progress):
                event = replace(event, stage=f"{name}: {event.stage}")
            self.listener(event)

        return self.run(arguments, relay)

    def _drop(self, name: str, *, keep: bool) -> None:
        """Remove a row's model, unless it is one of those to be kept."""
        if not (keep and self.keep_models):
            shutil.rmtree(self.common.place(name), ignore_errors=True)
