"""Merge fine-tuned copies of one model, tensor by tensor, without data."""

import hashlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from momacli.checkpoint.description import describe
from momacli.checkpoint.dtypes import parse_dtype, torch_dtype
from momacli.checkpoint.multitask_writer import MultiTaskWriter, TaskPart, multitask_writer
from momacli.checkpoint.naming import Named, choose_output, find_base, named_inputs
from momacli.checkpoint.plan import Expert, MergePlan, expert_from, plan_merge
from momacli.checkpoint.provenance import Recipe, record_input
from momacli.checkpoint.reader import Checkpoint, iterate_blocks
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError, UsageError
from momacli.methods._catalog import Method, load_method
from momacli.models.layout import head_names
from momacli.progress import Listener, Progress, ignore

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK = 1 << 20
"""Elements of one tensor worked on at a time where the method allows it."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or with dry_run would do."""

    output: Path
    method: str
    parameters: Mapping[str, Any]
    base: str
    tasks: tuple[str, ...]
    merged: int  # tensors
    copied: int
    carried: int  # head tensors
    left_out: tuple[str, ...]
    merged_parameters: int
    nbytes: int  # of the output's tensors
    changed_share: float  # of the merged parameters, how many differ from the base
    seconds: float
    dry_run: bool = False


def merge(
    inputs: Sequence[str | Path],
    *,
    method: str = "task-arithmetic",
    base: str | Path | None = None,
    output: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    scope: Literal["global", "tensor"] = "global",
    seed: int = 0,
    dtype: str | None = None,
    exclude: Sequence[str] = (),
    heads: Sequence[str] = (),
    config: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> MergeReport:
    """Merge checkpoints (files, model folders, or task vectors) and write the result.

    inputs: paths, or "NAME=PATH"; one of them may be the base, by its name base, pretrained
        or zeroshot.
    options: of the method, such as {"lam": 0.3, "density": 0.2}.
    weights: one per expert in the order given, or by task name.
    scope: whether statistics of a method with a first pass are of the whole model or of each
        tensor by itself.
    output: default `merged/`, with one loadable folder per task, where all experts are
        folders, else `merged.safetensors`.
    force: replace an existing output even if moma did not write it.

    Raises ConflictError listing all that does not fit, before any data is read, and other
    MomaErrors; nothing is written then.
    """
    started = time.monotonic()
    chosen = load_method(method)
    checked = chosen.check(options or {})
    with ExitStack() as stack:
        found_base, named = find_base(named_inputs(inputs), base)
        opened = stack.enter_context(Checkpoint.open(found_base.path, name=found_base.name))
        experts, parts = _open_experts(stack, named, heads, config)
        order = range(len(experts)) if chosen.ordered else _by_name(experts)
        experts, parts = [experts[i] for i in order], [parts[i] for i in order]
        own = describe(opened, Path(config) if config else None)
        plan = plan_merge(
            opened,
            experts,
            base_heads=head_names(own.config if own else None, opened.entries, heads),
            exclude=exclude,
            dtype=parse_dtype(dtype) if dtype else None,
        )
        as_folder = all(expert.checkpoint.is_folder for expert in experts)
        target = choose_output(
            output,
            "merged" if as_folder else "merged.safetensors",
            inputs=[opened.path, *(expert.checkpoint.path for expert in experts)],
            force=force,
        )
        job = _Job(plan, chosen, checked, _weights(weights, named, experts), scope, seed)
        report = job.report(target, parts, dry_run=dry_run)
        changed = 0.0
        if not dry_run:
            changed = job.run(target, parts, as_folder=as_folder, listener=listener)
        return replace(report, changed_share=changed, seconds=time.monotonic() - started)


def _open_experts(
    stack: ExitStack, named: Sequence[Named], heads: Sequence[str], config: str | Path | None
) -> tuple[list[Expert], list[TaskPart]]:
    if not named:
        raise UsageError("there is nothing to merge: only a base was given")
    experts, parts = [], []
    for item in named:
        checkpoint = stack.enter_context(Checkpoint.open(item.path, name=item.name))
        description = describe(checkpoint, Path(config) if config else None)
        names = head_names(description.config if description else None, checkpoint.entries, heads)
        expert = expert_from(checkpoint, names)
        specs = [
            TensorSpec(own, checkpoint.entries[key].dtype, checkpoint.entries[key].shape)
            for own, key in expert.heads.items()
        ]
        experts.append(expert)
        parts.append(TaskPart(item.name, specs, description))
    return experts, parts


def _by_name(experts: Sequence[Expert]) -> list[int]:
    """The order of names: a result must not depend on the order of a shell glob."""
    return sorted(range(len(experts)), key=lambda i: experts[i].name)


def _weights(
    weights: Sequence[float] | Mapping[str, float] | None,
    named: Sequence[Named],
    experts: Sequence[Expert],
) -> list[float] | None:
    """One weight per expert, in the order of `experts`."""
    if weights is None:
        return None
    names = [item.name for item in named]
    if isinstance(weights, Mapping):
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise UsageError(
                f"--weights names {', '.join(unknown)}, which is no expert",
                hint=f"the experts are {', '.join(names)}",
            )
        table = {name: float(weights.get(name, 1.0)) for name in names}
    else:
        if len(weights) != len(names):
            raise UsageError(f"--weights: expected {len(names)} numbers, found {len(weights)}")
        table = dict(zip(names, map(float, weights), strict=True))
    return [table[expert.name] for expert in experts]


@dataclass(frozen=True)
class _Job:
    """A merge whose inputs fit: what is left is arithmetic."""

    plan: MergePlan
    method: Method
    options: Mapping[str, Any]
    weights: Sequence[float] | None
    scope: str
    seed: int

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that determines the result, beside the inputs."""
        defaults = {
            key: item.default
            for key, item in self.method.options.items()
            if item.default is not None
        }
        values: dict[str, Any] = {"method": self.method.name, **defaults, **self.options}
        if self.method.first_pass:
            values["scope"] = self.scope
        if self.weights is not None:
            values["weights"] = list(self.weights)
        if self.method.takes("generators"):
            values["seed"] = self.seed
        return values

    def report(self, target: Path, parts: Sequence[TaskPart], *, dry_run: bool) -> MergeReport:
        plan = self.plan
        heads = [spec for part in parts for spec in part.heads]
        return MergeReport(
            output=target,
            method=self.method.name,
            parameters={key: item for key, item in self.parameters.items() if key != "method"},
            base=str(plan.base.path),
            tasks=tuple(part.task for part in parts),
            merged=len(plan.merged),
            copied=len(plan.copied),
            carried=len(heads),
            left_out=plan.left_out,
            merged_parameters=sum(spec.elements for spec in plan.merged),
            nbytes=sum(spec.nbytes for spec in [*plan.merged, *plan.copied, *heads]),
            changed_share=0.0,
            seconds=0.0,
            dry_run=dry_run,
        )

    def recipe(self, target: Path, parts: Sequence[TaskPart], *, digests: bool) -> Recipe:
        plan = self.plan
        configs = {part.task: part.description.config for part in parts if part.description}
        return Recipe(
            command="merge",
            parameters=self.parameters,
            base=record_input(plan.base, target, digests=digests),
            inputs=[
                record_input(
                    expert.checkpoint, target, digests=digests, task_vector=expert.is_task_vector
                )
                for expert in plan.experts
            ],
            heads=sorted({own for expert in plan.experts for own in expert.heads}),
            tasks=[expert.name for expert in plan.experts],
            configs=configs,
        )

    def run(
        self, target: Path, parts: Sequence[TaskPart], *, as_folder: bool, listener: Listener
    ) -> float:
        """Write the output; returns the share of merged parameters that changed."""
        plan = self.plan
        draft = self.recipe(target, parts, digests=False)
        encoder = [*plan.merged, *plan.copied]
        with multitask_writer(target, encoder, parts, draft, as_folder=as_folder) as writer:
            changed = self._encoder(writer, listener)
            for spec in plan.copied:
                writer.append(spec.name, plan.base.read(spec.name))
            for expert in plan.experts:
                for own, key in expert.heads.items():
                    writer.append_head(expert.name, own, expert.checkpoint.read(key))
            writer.finish(self.recipe(target, parts, digests=True))
        return changed

    def _encoder(self, writer: MultiTaskWriter, listener: Listener) -> float:
        statistic = None
        if self.method.first_pass and self.scope == "global":
            listener(Progress("measuring the task vectors", 0, 1, "passes"))
            statistic = self._first_pass()
        for checkpoint in (self.plan.base, *(item.checkpoint for item in self.plan.experts)):
            checkpoint.start_hash()
        total = sum(spec.elements for spec in self.plan.merged)
        done = changed = 0
        for spec in self.plan.merged:
            for merged, differing in self._tensor(spec, statistic):
                writer.append(spec.name, merged)
                changed += differing
                done += merged.numel()
                listener(Progress("merging", done, total, "parameters"))
        return changed / max(1, total)

    def _first_pass(self) -> Any:
        assert self.method.first_pass is not None
        wanted = inspect.signature(self.method.first_pass).parameters
        values = {**self.options, "weights": self._weight_tensor()}
        known = {key: value for key, value in values.items() if key in wanted}

        def stacks() -> "Iterator[Tensor]":
            for spec in self.plan.merged:
                for start, stop in iterate_blocks(spec.elements, BLOCK):
                    yield self._stack(spec.name, start, stop)[1].float()

        return self.method.first_pass(stacks, **known)

    def _tensor(self, spec: TensorSpec, statistic: Any) -> "Iterator[tuple[Tensor, int]]":
        """Yield the merged values of one tensor, in parts, with how many of them changed."""
        whole = not self.method.elementwise or (
            self.method.first_pass is not None and statistic is None
        )
        generators = self._generators(spec.name) if self.method.takes("generators") else None
        block = max(1, spec.elements) if whole else BLOCK
        for start, stop in iterate_blocks(spec.elements, block):
            theta_0, taus, theta_1 = self._stack(spec.name, start, stop, last=True)
            if whole:
                taus, theta_0 = taus.reshape(-1, *spec.shape), theta_0.reshape(spec.shape)
            values = self._arguments(spec.name, theta_0, generators, statistic)
            tau = self.method.function(taus, **self.options, **values).reshape(-1)
            merged = theta_0.reshape(-1) + tau
            if theta_1 is not None and bool((tau == taus.reshape(-1)).all()):
                merged = theta_1  # the sum may be off by a rounding; the expert itself is not
            _check_finite(spec.name, merged, taus)
            differing = int((merged != theta_0.reshape(-1)).sum())
            yield merged.to(torch_dtype(spec.dtype, spec.name)), differing

    def _stack(
        self, key: str, start: int, stop: int, *, last: bool = False
    ) -> "tuple[Tensor, Tensor, Tensor | None]":
        """Read theta_0 [n] and the task vectors [T, n], in float32 or float64.

        With one expert, theta_1 comes too.
        """
        import torch

        stored = self.plan.base.read_range(key, start, stop)
        theta_0 = stored if stored.dtype == torch.float64 else stored.float()
        taus = torch.empty(len(self.plan.experts), stop - start, dtype=theta_0.dtype)
        theta_1 = None
        for t, expert in enumerate(self.plan.experts):
            values = expert.checkpoint.read_range(key, start, stop)
            if expert.is_task_vector:
                taus[t] = values
            else:
                torch.sub(values, theta_0, out=taus[t])
                theta_1 = values.to(theta_0.dtype) if last and len(taus) == 1 else None
        return theta_0, taus, theta_1

    def _arguments(
        self,
        key: str,
        theta_0: "Tensor",
        generators: "list[torch.Generator] | None",
        statistic: Any,
    ) -> dict[str, Any]:
        available = {
            "base": theta_0,
            "weights": self._weight_tensor(),
            "generators": generators,
            "statistic": statistic,
            "name": key,
        }
        return {name: value for name, value in available.items() if self.method.takes(name)}

    def _weight_tensor(self) -> "Tensor | None":
        import torch

        return None if self.weights is None else torch.tensor(self.weights)

    def _generators(self, key: str) -> "list[torch.Generator]":
        """One generator per expert, seeded by (seed, task, tensor): the same in any order."""
        import torch

        seeds = (f"{self.seed}/{expert.name}/{key}".encode() for expert in self.plan.experts)
        digests = (hashlib.sha256(text).digest() for text in seeds)
        return [
            torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            for digest in digests
        ]


def _check_finite(key: str, merged: "Tensor", taus: "Tensor") -> None:
    import torch

    if not bool(torch.isfinite(merged.sum() + taus.sum())):
        if bool(torch.isfinite(merged).all() and torch.isfinite(taus).all()):
            return  # only the sum overflowed
        raise ConflictError(
            f"tensor {key} holds NaN or infinity in the base or in an expert",
            hint="such a model is broken and would break the merge; find out which it is",
        )
