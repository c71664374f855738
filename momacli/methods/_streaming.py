"""A merge method applied to a whole model, a block of one tensor at a time."""

import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from momacli.checkpoint.ahead import is_read_in_step
from momacli.checkpoint.arrays import Array, as_array, as_tensor
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import block_size, bytes_of, bytes_to_read, piece_size, stretch_size
from momacli.checkpoint.judging import check_finite, rounded
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.side_by_side import start_hashes
from momacli.checkpoint.spans import Span, pieces, spans
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError
from momacli.methods._added import added, written
from momacli.methods._by_size import BySize
from momacli.methods._catalog import Method
from momacli.methods._parts import Parts
from momacli.methods._settings import TensorSettings
from momacli.methods._stacks import StacksOfPlan
from momacli.methods._tally import Guesses, tally_of
from momacli.models.device import one_thread
from momacli.progress import Listener, Progress, ignore
from momacli.statistics.suspicion import Suspicion

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.methods._random_mask import Draws

Scope = Literal["global", "tensor"]

_PROCESS, _COPIES = 600_000_000, 6
"""Bytes of the process and what it reads ahead; blocks that a method holds at a time."""

_ARRAYS_PROCESS, _ARRAYS_COPIES = 300_000_000, 3
"""The same of methods that compute in NumPy, a piece at a time."""

_WORTH_COMPILING = 1 << 27
"""Entries of all models together from which on a compiled pass saves twice the loading of it."""

_START, _RATE = 1.0, 500e6
"""Seconds until the first byte; bytes a second, hashed and merged."""


@dataclass(frozen=True)
class Part:
    """Consecutive merged values of one tensor, in the type they are written in."""

    name: str
    values: Array  # flat
    changed: int  # how many differ from the base; of what comes again, how many more than before
    replaces: int | None = None  # of what comes again, its first element in the tensor


@dataclass(frozen=True)
class StreamedMerge:
    """A plan and a method with all its settings: what is left is arithmetic."""

    plan: MergePlan
    method: Method
    options: Mapping[str, Any]
    weights: Mapping[str, float] | None  # by task
    scope: Scope
    seed: int
    settings: Mapping[str, TensorSettings] = field(default_factory=dict)  # of single tensors
    device: str = "cpu"  # that methods of matrices compute on

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything of the method that determines the result, defaults included."""
        known = self.method.options
        values = {key: item.default for key, item in known.items() if item.default is not None}
        values |= self.options
        if self.method.first_pass:
            values["scope"] = self.scope
        if self.weights is not None:
            values["weights"] = dict(self.weights)
        if self.method.takes("draws"):
            values["seed"] = self.seed
        return values

    @property
    def expected_memory(self) -> int:
        """Bytes: of the process, and of what is held of the tensors at a time."""
        piece = piece_size(self.plan)
        parts = {spec: self._by_size.spans(spec) for spec in self.plan.merged}
        held = [
            spec.elements if cut is None else max((span.length for span in cut), default=0)
            for spec, cut in parts.items()
        ]
        whole = max(held, default=0)
        alone = self.method.first_pass is not None and self.scope == "tensor"
        if self.method.elementwise and not alone:
            whole = min(whole, piece)
        blocks = 4 * (1 + len(self.plan.experts)) * whole
        if self.method.takes_arrays:
            return _ARRAYS_PROCESS + _ARRAYS_COPIES * blocks
        return _PROCESS + _COPIES * blocks

    @property
    def expected_seconds(self) -> float | None:
        """On one processor of today, roughly; None for methods that compute on matrices."""
        if not self.method.elementwise:
            return None
        passes = 2 if self.method.first_pass is not None and self.scope == "global" else 1
        return _START + passes * sum(bytes_to_read(self.plan).values()) / _RATE

    def parts(
        self,
        listener: Listener,
        suspicion: Suspicion | None = None,
        share: Sequence[TensorSpec] | None = None,
    ) -> Iterator[Part]:
        """Compute the merged tensors, in the order of the plan.

        suspicion: is shown what passes by.
        share: the only tensors to compute, of those merged.

        Raises ConflictError where an input or the result is not finite.
        """
        statistics = self.statistics(listener)
        if share is None:
            self._start_hashes(statistics)
        wanted = self._spans(self.plan.merged if share is None else share, statistics)
        for _, part in self._told("merging", listener, wanted, statistics, suspicion):
            yield part

    def draft(self, listener: Listener, suspicion: Suspicion | None = None) -> Iterator[Part]:
        """Compute all merged tensors like `parts`, for somebody who can replace what came before.

        What only the last block settles is guessed till then, not found by a pass of its own;
        parts whose guess was wrong come again in the end.
        """
        statistics = self.statistics(listener)
        self._start_hashes(statistics)
        wanted = self._spans(self.plan.merged, statistics)
        with Guesses(statistics) as guesses:
            for span, part in self._told("merging", listener, wanted, statistics, suspicion):
                guesses.note(span, part.changed)
                yield part
            wrong, before = guesses.settle()
        yield from self._again(wrong, before, statistics, listener)

    def _again(
        self, wrong: Sequence[Span], before: int, statistics: Mapping[str, Any], listener: Listener
    ) -> Iterator[Part]:
        """Merge spans again, of which so many values were changed before."""
        if wrong:  # begin in the middle of a tensor
            assert self.method.elementwise
            assert not self.method.takes("draws")
        work = self
        if self.plan.tolerated is not None:  # it has been counted
            work = replace(self, plan=replace(self.plan, tolerated=Tolerated()))
        wanted = [piece for span in wrong for piece in pieces(span, block_size(self.plan))]
        for span, part in work._told("merging, pass 2", listener, wanted, statistics):
            yield replace(part, changed=part.changed - before, replaces=span.start)
            before = 0

    def _start_hashes(self, statistics: Mapping[str, Any]) -> None:
        in_step = self._is_in_pieces(statistics) or is_read_in_step()
        start_hashes(self.plan.checkpoints, in_step=in_step)

    def _told(
        self,
        stage: str,
        listener: Listener,
        wanted: Sequence[Span],
        statistics: Mapping[str, Any],
        suspicion: Suspicion | None = None,
    ) -> Iterator[tuple[Span, Part]]:
        """Compute spans, and tell how far that is."""
        table = bytes_to_read(self.plan)
        read, total = 0.0, sum(bytes_of(table, span) for span in wanted)
        for span, part in self._parts(wanted, statistics, suspicion):
            yield span, part
            read += bytes_of(table, span)
            listener(Progress(stage, round(read), round(total), "bytes"))

    def settings_of(self, name: str) -> TensorSettings:
        """The options and weights that one tensor is merged with."""
        return self.settings.get(name) or TensorSettings(self.options, self.weights)

    def statistics(self, listener: Listener) -> dict[str, Any]:
        """The statistic of the whole model, by tensor; empty where the method needs none.

        Tensors whose settings differ do not share one: it is of all that have the same.
        """
        if self.method.first_pass is None or self.scope == "tensor":
            return {}
        wanted = inspect.signature(self.method.first_pass).parameters
        groups: dict[str, list[TensorSpec]] = defaultdict(list)
        for spec in self.plan.merged:
            settings = self.settings_of(spec.name)
            known = {key: value for key, value in settings.options.items() if key in wanted}
            weights = settings.weights if "weights" in wanted else None
            groups[json.dumps([known, weights], sort_keys=True)].append(spec)
        found: dict[str, Any] = {}
        for specs in groups.values():
            found |= dict.fromkeys((spec.name for spec in specs), self._first_pass(specs, listener))
        return found

    def _first_pass(self, specs: Sequence[TensorSpec], listener: Listener) -> Any:
        assert self.method.first_pass is not None
        wanted = inspect.signature(self.method.first_pass).parameters
        settings = self.settings_of(specs[0].name)
        values = {**settings.options, "weights": self._weights(settings)}
        known = {key: value for key, value in values.items() if key in wanted}
        stacks = StacksOfPlan(self.plan, specs, self.method.takes_arrays, listener)
        with nullcontext() if self.method.takes_arrays else one_thread():
            return self.method.first_pass(stacks, **known)

    def tensor(self, spec: TensorSpec, statistic: Any) -> Iterator[Part]:
        """Compute one merged tensor, in consecutive parts, with its part of `statistics`."""
        statistics = {spec.name: statistic}
        for _, part in self._parts(self._spans([spec], statistics), statistics):
            yield part

    def _parts(
        self,
        wanted: Sequence[Span],
        statistics: Mapping[str, Any],
        suspicion: Suspicion | None = None,
    ) -> Iterator[tuple[Span, Part]]:
        name, given = None, dict[str, Any]()
        with (
            one_thread()
            if self.method.elementwise and not self.method.takes_arrays
            else nullcontext()
        ):
            known = (
                self.method.passes_on
                or self._is_in_one_pass
                or any(statistic is not None for statistic in statistics.values())
            )
            cut = piece_size(self.plan) if self._is_in_pieces(statistics) else None
            for span, block, more in self._by_size.read(wanted, piece=cut, known=known):
                if span.spec.name != name:
                    name = span.spec.name
                    given = {**self._arguments(name, statistics.get(name)), **more}
                if suspicion is not None:
                    opens = 0 if span.start else span.spec.elements
                    suspicion.see(block, opens=opens)
                yield span, self._part(span, block, given)

    @cached_property
    def _by_size(self) -> BySize:
        """Reads large tensors in parts, though they are not merged entry by entry."""
        return BySize(self.plan, self._parts_of, self._given)

    def _parts_of(self, spec: TensorSpec) -> Parts | None:
        """How the method takes parts of a tensor."""
        if self.method.first_pass is not None:
            if self.scope == "global":
                return None
            return Parts(lambda _: {"statistic": self._first_pass([spec], ignore)})
        if self.method.in_parts is None:
            return None
        parts: Parts | None = self.method.in_parts(**self.settings_of(spec.name).options)
        return None if parts is None or (parts.compiled and not self._is_in_one_pass) else parts

    def _is_in_pieces(self, statistics: Mapping[str, Any]) -> bool:
        return self.method.elementwise and not self._is_alone(statistics)

    def _is_alone(self, statistics: Mapping[str, Any]) -> bool:
        """Whether each tensor is measured by itself, which takes all of it."""
        return self.method.first_pass is not None and not any(
            statistic is not None for statistic in statistics.values()
        )

    def _spans(self, specs: Sequence[TensorSpec], statistics: Mapping[str, Any]) -> list[Span]:
        """Whole tensors, or stretches where each entry of the result depends on itself alone."""
        found, stretch = [], stretch_size(self.plan)
        for spec in specs:
            alone = self.method.first_pass is not None and statistics.get(spec.name) is None
            whole = alone or not self.method.elementwise
            parts = self._by_size.spans(spec) if whole else None
            found += spans([spec], None if whole else stretch) if parts is None else parts
        return found

    def _arguments(self, key: str, statistic: Any) -> dict[str, Any]:
        """What the method is given for one tensor, besides its values."""
        settings = self.settings_of(key)
        available = {
            "weights": self._weights(settings),
            "draws": self._draws(key) if self.method.takes("draws") else None,
            "statistic": statistic,
            "name": key,
        }
        wanted = {name: item for name, item in available.items() if self.method.takes(name)}
        return {**settings.options, **wanted}

    def _part(self, span: Span, block: Block, given: Mapping[str, Any]) -> Part:
        try:
            return self._merged(span, block, given)
        except ConflictError:
            tally = tally_of(given.get("statistic"))
            if tally is None or tally.take_guess() is None:
                raise
            tally.find()  # the guess may be why
            return self._merged(span, block, given)

    def _merged(self, span: Span, block: Block, given: Mapping[str, Any]) -> Part:
        spec = span.spec
        compiled = self._is_in_one_pass and (span.length > 1 or "products" in given)
        if block.thetas is not None and compiled:
            assert self.method.one_pass is not None
            with np.errstate(all="ignore"):
                values, changed = self.method.one_pass(block.theta_0, block.thetas, **given)
            if changed is not None:
                return Part(spec.name, *written(span, block.theta_0, values, changed))
            if "products" in given:
                rounded(values, spec)  # which tells that a value is not finite
        if self._is_in_one_pass and block.aside is None:  # nobody has looked
            check_finite(self.plan, span, block.theta_0, block.taus)
        shape = self._by_size.shape(span)
        if self.method.takes("base"):
            given = {**given, "base": self._given(block.theta_0.reshape(shape))}
        with np.errstate(all="ignore"):  # a result that is not finite is an error, not a warning
            tau = self.method.function(self._given(block.taus.reshape(-1, *shape)), **given)
            flat = (tau if isinstance(tau, np.ndarray) else as_array(tau)).reshape(-1)
            merged, changed = added(self.plan, span, block, flat)
        if block.aside is not None:
            block.aside.restore(merged)
        return Part(spec.name, merged, changed)

    @cached_property
    def _is_in_one_pass(self) -> bool:
        """Whether the method adds to the base in a compiled pass, and that is worth loading."""
        size = sum(spec.elements for spec in self.plan.merged) * len(self.plan.checkpoints)
        return self.method.one_pass is not None and size >= _WORTH_COMPILING

    def _given(self, values: Array) -> "Array | Tensor":
        """Values as the method takes them."""
        if self.method.takes_arrays:
            return values
        return as_tensor(values).to(self.device if self.method.computes_on_matrices else "cpu")

    def _weights(self, settings: TensorSettings) -> "Array | Tensor | None":
        if settings.weights is None:
            return None
        values = [settings.weights[expert.name] for expert in self.plan.experts]
        return self._given(np.array(values, dtype=np.float32))

    def _draws(self, key: str) -> "list[Draws]":
        """Random numbers by (seed, task, tensor): the same in any order."""
        from momacli.methods._random_mask import Draws

        return [Draws(f"{self.seed}/{expert.name}/{key}") for expert in self.plan.experts]
