"""From a merge made ready and folders of samples to one that can be written."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from momacli.adaptation.ensemble import Ensemble, Task
from momacli.alignment.resume import Keeper
from momacli.alignment.samples import batches
from momacli.checkpoint.arrays import Array, as_tensor
from momacli.checkpoint.block import Block
from momacli.checkpoint.blocks import read_blocks
from momacli.checkpoint.description import Description
from momacli.checkpoint.plan import Expert
from momacli.checkpoint.spans import Span
from momacli.data.features import feature_key
from momacli.data.folders import Data, task_sources
from momacli.data.loading import Samples, load_samples
from momacli.data.reading import Reading
from momacli.errors import ConflictError, ModelError, UsageError
from momacli.merging.catalog import SampleMethod
from momacli.merging.learned import OnSamples
from momacli.merging.prepare import Merging
from momacli.merging.ranks import Ranks
from momacli.merging.sample_record import SampleRecord
from momacli.methods._streaming import StreamedMerge
from momacli.models.classification import Classifier
from momacli.models.families import open_classifier
from momacli.models.precision import choose_precision
from momacli.models.separate_head import SeparateHead
from momacli.progress import Listener


@dataclass(frozen=True)
class Learning:
    """A merge and the samples of its tasks, checked: what is left is to run the network."""

    merging: Merging
    work: OnSamples
    sources: Mapping[str, Path]  # by task
    reading: Reading
    device: torch.device
    listener: Listener

    @classmethod
    def of(
        cls,
        merging: Merging,
        data: Data,
        reading: Reading,
        device: torch.device,
        listener: Listener,
    ) -> "Learning":
        """Check that there are heads, a known network, and samples of every task.

        Raises ConflictError, ModelError and DataError.
        """
        work, inputs = merging.work, merging.inputs
        assert isinstance(work, OnSamples)
        if Ranks.here().count > 1:
            raise UsageError(f"method {work.method.name} runs in one process, without torchrun")
        headless = [expert.name for expert in inputs.experts if not expert.heads]
        if headless:
            raise ConflictError(
                f"method {work.method.name} needs the head of every expert",
                details=[f"{name}: no head was recognised" for name in headless],
                hint="name its tensors with --heads GLOB, or say what model it is with --config",
            )
        unknown = [task for task, one in inputs.descriptions.items() if one is None]
        if unknown:
            raise ModelError(
                f"what model {', '.join(unknown)} is, is not known",
                hint="give its config.json with --config",
            )
        sources = task_sources(data, [expert.name for expert in inputs.experts])
        count = SampleMethod(work.method.name).samples
        chosen = reading.sampling
        if count is not None and chosen.count is None and chosen.share is None:
            reading = replace(reading, sampling=replace(chosen, count=count))
        return cls(merging, _on(device, work), sources, reading, device, listener)

    def run(self, state: Path, every: int) -> tuple[Merging, Keeper]:
        """Learn; returns the merge with what was learned, and what keeps its state.

        state: the file that the state is kept in, each `every` steps.
        """
        method = SampleMethod(self.work.method.name)
        loaded = self._samples()
        keeper = Keeper(state, self._key(loaded), every, self.listener)
        options = dict(self.work.options)
        if self.work.weights is not None:
            given = [self.work.weights[expert.name] for expert in self.work.plan.experts]
            options["weights"] = torch.tensor(given)
        found = method.function(self._ensemble(loaded, keeper), **options)
        selection = self.merging.selection
        record = SampleRecord(
            pooling=selection["pooling"],
            features=selection["features"],
            samples={task: len(samples) for task, samples in loaded.items()},
        )
        work: StreamedMerge
        if method.with_coefficients is None:
            work = self.work.with_tensors(found)
        else:
            record = replace(record, coefficients=self._by_task(found))
            work = self.work.with_coefficients(record.coefficients)
        return replace(self.merging, work=work, selection={**selection, **record.encode()}), keeper

    def _by_task(self, table: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
        """Coefficients by task and tensor, of those by tensor."""
        return {
            expert.name: {name: float(column[t]) for name, column in table.items()}
            for t, expert in enumerate(self.work.plan.experts)
        }

    def _samples(self) -> dict[str, Samples]:
        told: set[str] = set()
        return {
            expert.name: load_samples(
                self.sources[expert.name],
                self._description(expert),
                expert.name,
                self.reading,
                told=told,
                listener=self.listener,
            )
            for expert in self.work.plan.experts
        }

    def _description(self, expert: Expert) -> Description:
        found = self.merging.inputs.descriptions[expert.name]
        assert found is not None
        return found

    def _key(self, loaded: Mapping[str, Samples]) -> str:
        """Hash what determines the result: method, weights, samples and how they are prepared."""
        plan = self.work.plan
        weights = {expert.name: expert.checkpoint.sha256() for expert in plan.experts}
        samples = {
            task: feature_key({}, {**one.preparation}, one.files, self.sources[task])
            for task, one in loaded.items()
        }
        configs = {task: dict(one) for task, one in self.merging.inputs.configs.items()}
        content = {
            "method": self.work.method.name,
            "parameters": self.work.parameters,
            "selection": dict(self.merging.selection),
            "base": plan.base.sha256(),
            "experts": weights,
            "samples": samples,
            "configs": configs,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _ensemble(self, loaded: Mapping[str, Samples], keeper: Keeper) -> Ensemble:
        reader = _Reader(self.work)
        experts = self.work.plan.experts
        network = self._network(reader)
        tasks: list[Task] = []
        for expert in experts:
            samples = loaded[expert.name]
            batch = batches(samples, self.device)
            if not tasks:
                network.find_head(batch(torch.arange(min(4, len(samples)))))
            head = network.head(_head_reader(expert), expert.heads)
            tasks.append(Task(expert.name, len(samples), batch, head, samples.padding))
        return Ensemble(
            network=network,
            tensors=[spec.name for spec in self.work.plan.merged],
            tasks=tasks,
            base=reader.base,
            expert=reader.expert,
            seed=self.work.seed,
            keeper=keeper,
            listener=self.listener,
        )

    def _network(self, reader: "_Reader") -> Classifier | SeparateHead:
        """The network of the first expert, with its weights."""
        plan, expert = self.work.plan, self.work.plan.experts[0]
        merged = {spec.name for spec in plan.merged}
        entries = {spec.name: plan.base.entries[spec.name] for spec in (*plan.merged, *plan.copied)}
        own = expert.checkpoint.entries
        entries |= {name: own[key] for name, key in expert.heads.items()}
        config = self._description(expert).config
        heads = sorted({name for one in plan.experts for name in one.heads})
        network = open_classifier(config, entries, heads=heads, device=self.device)
        head = _head_reader(expert)

        def read(name: str) -> Tensor:
            if name in expert.heads:
                return head(name)
            if name in merged:
                return reader.expert(0, name)
            return plan.base.read(name)

        network.load(read, entries, source=str(expert.checkpoint.path))
        return network


def _on(device: torch.device, work: OnSamples) -> OnSamples:
    """The same work, with what it leaves to the device."""
    if not work.method.takes("precision"):
        return work
    size = sum(spec.elements for spec in work.plan.merged)
    chosen = choose_precision(work.options.get("precision", "auto"), device, size)
    return replace(work, options={**work.options, "precision": chosen})


def _head_reader(expert: Expert) -> Callable[[str], Tensor]:
    return lambda name: expert.checkpoint.read(expert.heads[name])


class _Reader:
    """Reads whole tensors to be merged, of the base and of single experts, in float32.

    Raises ConflictError where a value is not finite.
    """

    def __init__(self, work: OnSamples):
        plan = work.plan
        self._specs = {spec.name: spec for spec in plan.merged}
        self._alone = [replace(plan, experts=(expert,)) for expert in plan.experts]

    def base(self, name: str) -> Tensor:
        """theta_0 of a tensor."""
        return self._tensor(name, self._block(0, name).theta_0)

    def expert(self, t: int, name: str) -> Tensor:
        """theta_t of a tensor."""
        block = self._block(t, name)
        found = block.theta_1
        return self._tensor(name, block.theta_0 + block.taus[0] if found is None else found)

    def _block(self, t: int, name: str) -> Block:
        spec = self._specs[name]
        wanted = [Span(spec, 0, spec.elements)]
        ((_, block),) = read_blocks(self._alone[t], wanted, ahead=False)
        return block

    def _tensor(self, name: str, values: Array) -> Tensor:
        return as_tensor(values).float().reshape(self._specs[name].shape)
