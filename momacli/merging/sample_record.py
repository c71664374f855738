"""What an output says of the samples it was learned from, beside its method's parameters."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.feature_rule import chosen_rule, with_rule
from momacli.models.inputs import Inputs

if TYPE_CHECKING:
    from momacli.merging.learned import Coefficients
    from momacli.methods._streaming import StreamedMerge


@dataclass(frozen=True)
class SampleRecord:
    """How features are taken, how many samples of each task were seen, and what was learned."""

    pooling: str | None = None
    features: str | None = None
    samples: Mapping[str, int] = field(default_factory=dict)  # by task
    coefficients: "Coefficients" = field(default_factory=dict)

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> "SampleRecord":
        """Take what is recorded out of a method's options."""
        names = ("pooling", "features", "samples", "coefficients")
        taken = {name: options.pop(name, None) for name in names}
        return cls(**{name: value for name, value in taken.items() if value})

    def encode(self) -> dict[str, Any]:
        """As JSON values, to be recorded."""
        return asdict(self)

    def with_features(self, inputs: Inputs) -> Inputs:
        """The inputs with what the user says of their features."""
        if self.pooling is None and self.features is None:
            return inputs
        found = {}
        for task, one in inputs.descriptions.items():
            if one is not None:
                rule = chosen_rule(one.config, self.pooling, self.features, f"expert {task}")
                one = replace(one, config=with_rule(one.config, rule))
            found[task] = one
        return replace(inputs, descriptions=found)

    def known(self, work: "StreamedMerge", *, learning: bool) -> "StreamedMerge":
        """The work that can be done: with samples to come, or with recorded coefficients.

        Raises UsageError where there is neither.
        """
        from momacli.merging.learned import OnSamples, needs_samples

        on_samples = OnSamples.of(work)
        if learning:
            return on_samples
        if not self.coefficients:
            raise needs_samples(work.method.name)
        return on_samples.with_coefficients(self.coefficients)
