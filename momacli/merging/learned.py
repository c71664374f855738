"""Merges whose tensors, or whose coefficients, were found on samples, for the engine to write."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.arrays import as_array, converted, count_changed
from momacli.checkpoint.blocks import block_size, bytes_to_read, read_blocks
from momacli.checkpoint.judging import rounded
from momacli.checkpoint.spans import spans
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import CheckpointError, UsageError
from momacli.merging.catalog import SampleMethod
from momacli.methods._streaming import Part, StreamedMerge
from momacli.progress import Listener, Progress
from momacli.statistics.suspicion import Suspicion

if TYPE_CHECKING:
    from torch import Tensor

Coefficients = Mapping[str, Mapping[str, float]]
"""By task, by tensor."""


@dataclass(frozen=True)
class OnSamples(StreamedMerge):
    """A merge by a method that sees samples, before it has seen any."""

    @classmethod
    def of(cls, work: StreamedMerge) -> "OnSamples":
        """The same work."""
        return cls(**{item.name: getattr(work, item.name) for item in fields(StreamedMerge)})

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything of the method that determines the result, defaults and seed included."""
        return {**super().parameters, "seed": self.seed}

    @property
    def expected_memory(self) -> int:
        """Bytes: of the process, and of the vectors of the encoder's size that are held.

        What the network needs for the samples of a step comes on top.
        """
        size = 4 * sum(spec.elements for spec in self.plan.merged)
        held = SampleMethod(self.method.name).encoders(len(self.plan.experts))
        return 10**9 + held * size

    def with_tensors(self, tensors: "Mapping[str, Tensor]") -> "FoundMerge":
        """The merge that is now known tensor by tensor, in float32."""
        return FoundMerge(**self._content(), tensors=tensors)

    def with_coefficients(self, coefficients: Coefficients) -> "CoefficientMerge":
        """The merge that is a sum of task vectors with these coefficients.

        Raises CheckpointError where they are not of these experts and tensors.
        """
        method = SampleMethod(self.method.name).with_coefficients
        names = [expert.name for expert in self.plan.experts]
        try:
            table = {
                spec.name: [float(coefficients[name][spec.name]) for name in names]
                for spec in self.plan.merged
            }
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "the recorded coefficients are not of these experts and tensors",
                hint="the record was written by another version of moma, or changed by hand",
            ) from error
        assert method is not None
        taken = {key: value for key, value in self.options.items() if method.takes(key)}
        if "density" in method.parameters:
            taken.setdefault("density", method.parameters["density"].default)
        content = self._content() | {"method": method, "options": {**taken, "coefficients": table}}
        return CoefficientMerge(**content, said=self.parameters)

    def _content(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(StreamedMerge)}


def needs_samples(name: str) -> UsageError:
    """What to say where a method that sees samples has none."""
    return UsageError(
        f"method {name} learns from unlabeled samples, which are not known here",
        hint=f"run it by itself: moma merge … --method {name} --data unlabeled/; to check an "
        "output, do so again with the same samples and compare: moma info OUT AGAIN",
    )


@dataclass(frozen=True)
class FoundMerge(OnSamples):
    """A merge that is known tensor by tensor."""

    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)

    def parts(
        self,
        listener: Listener,
        suspicion: Suspicion | None = None,
        share: Sequence[TensorSpec] | None = None,
    ) -> Iterator[Part]:
        """Round the tensors to the types that are written, a block at a time.

        The inputs are read once more, for what changed of the base and what is suspicious.
        """
        wanted = self.plan.merged if share is None else share
        table = bytes_to_read(self.plan)
        read, total = 0.0, sum(table[spec.name] for spec in wanted)
        for span, block in read_blocks(self.plan, spans(wanted, block_size(self.plan))):
            spec = span.spec
            if suspicion is not None:
                opens = 0 if span.start else spec.elements
                suspicion.see(block, opens=opens)
            found = as_array(self.tensors[spec.name]).reshape(-1)[span.start : span.stop]
            merged = rounded(found, spec)
            changed = count_changed(merged, converted(block.theta_0, merged.dtype))
            yield Part(spec.name, merged, int(changed))
            read += table[spec.name] * span.length / spec.elements
            listener(Progress("writing", round(read), total, "bytes"))

    def draft(self, listener: Listener, suspicion: Suspicion | None = None) -> Iterator[Part]:
        """Round the tensors to the types that are written; none comes again."""
        return self.parts(listener, suspicion)


@dataclass(frozen=True)
class CoefficientMerge(StreamedMerge):
    """A merge by coefficients that were learned, which needs no samples any more."""

    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the coefficients were learned with."""
        return dict(self.said)
