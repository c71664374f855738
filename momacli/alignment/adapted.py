"""Models with an adapter behind their encoder, which lies in a file beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from momacli.alignment.alignment import open_alignment
from momacli.alignment.beside import adapter_file, has_adapters
from momacli.alignment.in_depth import DeepEncoder
from momacli.alignment.samples import reader
from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.errors import CheckpointError, ConflictError
from momacli.features.adapter import Adapter
from momacli.models.classification import Classifier
from momacli.models.interface import Batch, Head
from momacli.models.precision import computing_in
from momacli.models.separate_head import SeparateHead
from momacli.shapes import Float

_FEW = 4


@dataclass(frozen=True)
class Adapters:
    """The adapters of an output, by task, and their file."""

    path: Path
    tasks: Mapping[str, Adapter]

    @property
    def parameters(self) -> int:
        """How many they add, of all tasks together."""
        return sum(adapter.parameters for adapter in self.tasks.values())


def adapters_beside(model: MultiTask) -> Adapters | None:
    """Read the adapters that an output was written with; None if there were none.

    The folder of a single task has them in the folder around it.

    Raises CheckpointError if they are not there, ConflictError if they are others.
    """
    if not has_adapters(model.recipe):
        return None
    assert model.recipe is not None
    path = adapter_file(model.path)
    hint = "bring it back, or leave the adapter out with --no-adapter"
    if not path.is_file():
        raise CheckpointError(
            f"{shown_path(path)} does not exist, the adapter of {shown_path(model.path)}", hint=hint
        )
    with open_alignment(path) as found:
        if found.sha256() != model.recipe.alignment:
            raise ConflictError(
                f"{shown_path(path)} is not the adapter that {shown_path(model.path)} was "
                "written with",
                hint=hint,
            )
        missing = [task for task in model.tasks if task not in found.adapters]
        if missing:
            raise CheckpointError(
                f"{shown_path(path)} has no adapter for these tasks", details=missing, hint=hint
            )
        return Adapters(path, {task: found.adapters[task] for task in model.tasks})


class Answers:
    """What makes logits: a loaded network, with its adapter if it has one.

    Without an adapter and in float32 it is the architecture's own code that does.
    """

    def __init__(
        self,
        network: Classifier | SeparateHead,
        model: TaskModel,
        adapter: Adapter | None,
        precision: str = "float32",
    ):
        """Take a network with the weights of a task's model.

        precision: of the encoder's arithmetic, float32 or bfloat16. An adapter behind it and the
        head compute in float32, for logits in bfloat16 would often tie.
        """
        self._network, self._model, self._precision = network, model, precision
        self._adapter = None if adapter is None else adapter.to(network.device)
        self._head: Head | None = None  # once a batch has shown where it is
        self._deep: DeepEncoder | None = None  # likewise

    @property
    def in_depth(self) -> bool:
        """Whether the adapter changes what the encoder makes."""
        return self._adapter is not None and bool(self._adapter.blocks)

    def __call__(self, batch: Batch) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n d"] | None]:
        """Return logits and the features they are of, None where it is not known which these are.

        Raises ConflictError if the adapter is not as wide as the features.
        """
        if self._adapter is None and self._precision == "float32":
            return self._network.answer(batch)
        self.find_head(batch)
        if self.in_depth and self._deep is None:
            assert self._adapter is not None
            self._deep = DeepEncoder(self._network, _few(batch))
            self._deep.check(self._adapter.blocks, self._model.task)
        with computing_in(self._precision, self._network.device):
            if self._deep is not None and self._adapter is not None:
                features = self._deep(batch, self._adapter.blocks)[1]
            else:
                features = self._network.features(batch)
        return self.of_features(features), features.float()

    def find_head(self, batch: Batch) -> None:
        """Find the head with a few samples of a batch. Raises ModelError."""
        if self._head is None:
            self._network.find_head(_few(batch))
            self._head = self._network.head(reader(self._model), self._model.keys)

    def of_features(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n C"]:
        """Return the logits of what the encoder made, once the head is found.

        Raises ConflictError if the adapter is not as wide.
        """
        assert self._head is not None
        features = features.float()
        if self._adapter is None:
            return self._head(features)
        if features.shape[1] != self._adapter.down.shape[1]:
            raise ConflictError(
                f"the adapter of task {self._model.task} is for features of "
                f"{self._adapter.down.shape[1]} numbers, the encoder gives {features.shape[1]}"
            )
        return self._head(self._adapter(features))


def _few(batch: Batch) -> Batch:
    """The first samples of a batch, which show where the head and the blocks are."""
    return {key: value[:_FEW] for key, value in batch.items()}
