"""Methods that give one task back instead of a merge of all: a model for each, by its name."""

from dataclasses import dataclass, field, replace
from typing import Any

from momacli.checkpoint.escaping import shown
from momacli.errors import UsageError
from momacli.methods._settings import TensorSettings
from momacli.methods._streaming import StreamedMerge
from momacli.progress import Listener


@dataclass(frozen=True)
class Reconstruction(StreamedMerge):
    """A merge of which every task has its own result; what is measured of all is shared."""

    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, work: StreamedMerge) -> "Reconstruction":
        """The same work, for no task yet."""
        return cls(
            work.plan,
            work.method,
            work.options,
            work.weights,
            work.scope,
            work.seed,
            work.settings,
        )

    def of_task(self, name: str) -> "Reconstruction":
        """The work for one task. Raises UsageError if it is none of the experts."""
        names = [expert.name for expert in self.plan.experts]
        if name not in names:
            raise UsageError(
                f"--task {shown(name)} is no expert",
                hint=f"the experts are {', '.join(map(shown, names))}",
            )
        index = {"task": names.index(name)}
        settings = {
            key: TensorSettings({**one.options, **index}, one.weights)
            for key, one in self.settings.items()
        }
        return replace(self, options={**self.options, **index}, settings=settings)

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything of the method that determines the result, the task by its name."""
        values = super().parameters
        if "task" in values:
            values["task"] = self.plan.experts[values["task"]].name
        return values

    def statistics(self, listener: Listener) -> dict[str, Any]:
        """The statistic of the whole model, by tensor: the same for all tasks."""
        if not self.measured:
            self.measured.update(super().statistics(listener))
        return self.measured

    def stored_bits(self, tasks: int) -> int:
        """What so many tasks need to be kept, beside the base and one multi-task vector."""
        masks = sum(spec.elements for spec in self.plan.merged)
        return tasks * (masks + 32 * (self.method.stored_numbers or 0))
