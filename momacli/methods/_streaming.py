"""A merge method applied to a whole model, a block of one tensor at a time."""

import hashlib
import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from momacli.checkpoint.blocks import (
    Block,
    Span,
    block_size,
    bytes_to_read,
    evenly_spread,
    read_blocks,
    rounded,
    spans,
)
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.writer import TensorSpec
from momacli.methods._catalog import Method
from momacli.methods._settings import TensorSettings
from momacli.progress import Listener, Notice, Progress
from momacli.statistics.suspicion import Suspicion

Scope = Literal["global", "tensor"]

_PROCESS, _COPIES = 600_000_000, 6
"""Bytes of the process before any tensor; blocks that reading and a method hold at a time."""

_START, _RATE = 4.0, 600e6
"""Seconds until the first byte; bytes a second, hashed and merged."""


@dataclass(frozen=True)
class Part:
    """Consecutive merged values of one tensor, in the type they are written in."""

    name: str
    values: Tensor  # flat
    changed: int  # how many differ from the base


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
        if self.method.takes("generators"):
            values["seed"] = self.seed
        return values

    @property
    def expected_memory(self) -> int:
        """Bytes: of Python and torch, and of what is held of the tensors at a time."""
        whole = max((spec.elements for spec in self.plan.merged), default=0)
        alone = self.method.first_pass is not None and self.scope == "tensor"
        if self.method.elementwise and not alone:
            whole = min(whole, block_size(self.plan))
        blocks = 4 * (1 + len(self.plan.experts)) * whole
        return _PROCESS + _COPIES * blocks

    @property
    def expected_seconds(self) -> float | None:
        """On one processor of today, roughly; None for methods that compute on matrices."""
        if not self.method.elementwise:
            return None
        passes = 3 if self.method.first_pass is not None and self.scope == "global" else 1
        return _START + passes * sum(bytes_to_read(self.plan).values()) / _RATE

    def parts(self, listener: Listener) -> Iterator[Part]:
        """Compute the merged tensors, in the order of the plan.

        Raises ConflictError where an input or the result is not finite.
        """
        sizes = bytes_to_read(self.plan)
        statistics = self.statistics(listener)
        for checkpoint in (self.plan.base, *(item.checkpoint for item in self.plan.experts)):
            checkpoint.start_hash()
        read = 0.0
        suspicion = Suspicion(len(self.plan.experts))
        for span, part in self._parts(self.plan.merged, statistics, suspicion):
            yield part
            read += sizes[part.name] * span.length / span.spec.elements
            listener(Progress("merging", round(read), sum(sizes.values()), "bytes"))
        for remark in suspicion.remarks([shown(expert.name) for expert in self.plan.experts]):
            listener(Notice(remark))

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
        values = {**settings.options, "weights": self._weight_tensor(settings)}
        known = {key: value for key, value in values.items() if key in wanted}
        stacks = _Stacks(self.plan, specs, listener)
        with _one_thread():
            return self.method.first_pass(stacks, **known)

    def tensor(self, spec: TensorSpec, statistic: Any) -> Iterator[Part]:
        """Compute one merged tensor, in consecutive parts, with its part of `statistics`."""
        for _, part in self._parts([spec], {spec.name: statistic}):
            yield part

    def _parts(
        self,
        specs: Sequence[TensorSpec],
        statistics: Mapping[str, Any],
        suspicion: Suspicion | None = None,
    ) -> Iterator[tuple[Span, Part]]:
        generators = None
        wanted = [span for spec in specs for span in self._spans(spec, statistics.get(spec.name))]
        with _one_thread() if self.method.elementwise else nullcontext():
            for span, block in read_blocks(self.plan, wanted):
                if span.start == 0 and self.method.takes("generators"):
                    generators = self._generators(span.spec.name)
                if suspicion is not None:
                    opens = 0 if span.start else span.spec.elements
                    suspicion.see(block.theta_0, block.taus, opens=opens)
                yield span, self._part(span, block, statistics.get(span.spec.name), generators)

    def _spans(self, spec: TensorSpec, statistic: Any) -> list[Span]:
        """The whole tensor, or blocks where each entry of the result depends on itself alone."""
        alone = self.method.first_pass is not None and statistic is None
        whole = alone or not self.method.elementwise
        return spans([spec], None if whole else block_size(self.plan))

    def _part(
        self,
        span: Span,
        block: Block,
        statistic: Any,
        generators: Sequence[torch.Generator] | None,
    ) -> Part:
        spec, settings = span.spec, self.settings_of(span.spec.name)
        shape = spec.shape if span.length == spec.elements else block.theta_0.shape
        available = {
            "base": block.theta_0.reshape(shape),
            "weights": self._weight_tensor(settings),
            "generators": generators,
            "statistic": statistic,
            "name": spec.name,
        }
        values = {key: item for key, item in available.items() if self.method.takes(key)}
        tau = self.method.function(block.taus.reshape(-1, *shape), **settings.options, **values)
        merged = rounded(_add(block, tau.reshape(-1)), spec)
        changed = _differing(merged, block.theta_0)
        if block.aside is not None:
            block.aside.restore(merged)
        return Part(spec.name, merged, changed)

    def _weight_tensor(self, settings: TensorSettings) -> Tensor | None:
        if settings.weights is None:
            return None
        return torch.tensor([settings.weights[expert.name] for expert in self.plan.experts])

    def _generators(self, key: str) -> list[torch.Generator]:
        """One generator per expert, seeded by (seed, task, tensor): the same in any order."""
        seeds = (f"{self.seed}/{expert.name}/{key}".encode() for expert in self.plan.experts)
        digests = (hashlib.sha256(text).digest() for text in seeds)
        return [
            torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            for digest in digests
        ]


class _Stacks:
    """The task vectors of some tensors, to be read block by block as often as needed."""

    def __init__(self, plan: MergePlan, specs: Sequence[TensorSpec], listener: Listener):
        self._plan, self._specs, self._listener = plan, specs, listener
        self._passes = 0

    def __call__(self) -> Iterator[Tensor]:
        """Read all of them."""
        self._passes += 1
        stage, read = f"measuring, pass {self._passes}", 0.0
        sizes = bytes_to_read(self._plan)
        total = sum(sizes[spec.name] for spec in self._specs)
        for span, block in read_blocks(self._plan, spans(self._specs, block_size(self._plan))):
            yield block.taus.float()
            read += sizes[span.spec.name] * span.length / span.spec.elements
            self._listener(Progress(stage, round(read), total, "bytes"))

    def sample(self) -> Iterator[Tensor]:
        """Read runs of entries, evenly spread; of a small model, none."""
        for _, block in read_blocks(self._plan, evenly_spread(self._specs)):
            yield block.taus.float()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone: on small blocks, waiting for others costs more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _add(block: Block, tau: Tensor) -> Tensor:
    """theta_0 + tau; with one expert and its whole task vector, exactly that expert."""
    if block.theta_1 is not None and bool((tau == block.taus[0]).all()):
        return block.theta_1
    return block.theta_0 + tau


def _differing(merged: Tensor, theta_0: Tensor) -> int:
    """How many values are not the base's; NumPy counts ten times as fast as torch adds up."""
    return int(np.count_nonzero((merged != theta_0.to(merged.dtype)).numpy()))
