"""Models with an adapter behind their encoder, which lies in a file beside them."""

from collections.abc import Callable, Mapping
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

_FEW = 4  # samples of the first batch, which show where the head and the blocks are


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


def answers(
    network: Classifier | SeparateHead,
    model: TaskModel,
    adapter: Adapter | None,
    precision: str = "float32",
) -> Callable[[Batch], Tensor]:
    """Return what makes logits of batches: the loaded network, with its adapter if it has one.

    precision: of the encoder's arithmetic, float32 or bfloat16. An adapter behind it and the head
    compute in float32, for logits in bfloat16 would often tie.

    Raises ConflictError if the adapter is not as wide as the features.
    """
    if adapter is None and precision == "float32":
        return network.logits
    mend = None if adapter is None else adapter.to(network.device)
    heads: list[Head] = []  # the one, once a batch has shown where it is
    deep: list[DeepEncoder] = []  # likewise

    def answer(batch: Batch) -> Tensor:
        few = {key: value[:_FEW] for key, value in batch.items()}
        if not heads:
            network.find_head(few)
            heads.append(network.head(reader(model), model.keys))
        if mend is not None and mend.blocks and not deep:
            deep.append(DeepEncoder(network, few))
            deep[0].check(mend.blocks, model.task)
        with computing_in(precision, network.device):
            found = deep[0](batch, mend.blocks)[1] if mend and deep else network.features(batch)
        features = found.float()
        if mend is None:
            return heads[0](features)
        if features.shape[1] != mend.down.shape[1]:
            raise ConflictError(
                f"the adapter of task {model.task} is for features of {mend.down.shape[1]} "
                f"numbers, the encoder gives {features.shape[1]}"
            )
        return heads[0](mend(features))

    return answer
