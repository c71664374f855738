"""`transformers` models for image and text classification, split at their head by structure.

The encoder is what `base_model_prefix` names, the head is the rest; the features are the input
of the head's first linear layer, whatever comes between (a pooler, the choice of a token).
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ModelError
from momacli.models.factory import build, quiet
from momacli.models.interface import Batch, Head
from momacli.models.layout import head_names, sized_config


class Classifier:
    """A classification model in evaluation mode; tensors go by their checkpoint names."""

    def __init__(
        self,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        device: torch.device | str = "cpu",
    ):
        """Build the network of a config, with the number of classes that `entries` have."""
        sized = sized_config(config, entries, head_names(config, entries))
        self.module = build(sized).to(device).eval()
        self.device = torch.device(device)
        self._names = checkpoint_names(self.module)
        self._captured: list[Tensor] = []  # the features of the pass under way
        self.head_name = self._watch_head()  # checkpoint name of the layer that absorbs A_t
        self.module.requires_grad_(False)
        own = dict(self.module.named_parameters())
        buffers = dict(self.module.named_buffers())
        self.parameters: Mapping[str, nn.Parameter] = {
            key: own[name]
            for key, name in self._names.items()
            if name in own and name not in self._head_modules
        }
        self.buffers: Mapping[str, Tensor] = {
            key: buffers[name] for key, name in self._names.items() if name in buffers
        }

    def load(self, read: Callable[[str], Tensor], keys: Iterable[str], *, source: str) -> None:
        """Replace all weights; `keys` must be exactly the model's tensors.

        Raises ModelError listing what is missing or unexpected.
        """
        given = set(keys)
        wrong = [f"{shown(key)}   missing" for key in self._names if key not in given]
        wrong += [f"{shown(key)}   unexpected" for key in sorted(given - set(self._names))]
        if wrong:
            raise ModelError(
                f"{source} does not hold the tensors of a {type(self.module).__name__}",
                details=wrong,
                hint="is the config.json that of these weights? give another with --config",
            )
        state = self.module.state_dict()
        with torch.no_grad():
            for key, name in self._names.items():
                value = read(key)
                if value.shape != state[name].shape:
                    raise ModelError(
                        f"{source}: tensor {shown(key)}: the config expects "
                        f"{list(state[name].shape)}, found {list(value.shape)}"
                    )
                state[name].copy_(value)

    def load_encoder(self, read: Callable[[str], Tensor]) -> None:
        """Replace the encoder's weights and leave the head's as they are."""
        with torch.no_grad():
            for key, tensor in [*self.parameters.items(), *self.buffers.items()]:
                tensor.copy_(read(key))

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the input of the head's first linear layer."""
        self._captured.clear()
        self.module(**batch)
        found = self._captured.pop()
        if found.ndim != 2:
            raise ModelError(
                f"{type(self.module).__name__}: its head takes features of an unexpected form",
                hint="only one feature vector a sample can be aligned",
            )
        return found

    def logits(self, batch: Batch) -> Float[Tensor, "N C"]:
        """Return the whole model's logits, computed by transformers itself."""
        logits: Tensor = self.module(**batch).logits
        return logits

    def _watch_head(self) -> str:
        """Note the input of the head's first linear layer in every forward pass; its name."""
        prefix = f"{self.module.base_model_prefix}."
        outside = {n for n, _ in self.module.named_parameters() if not n.startswith(prefix)}
        self._head_modules = outside
        linear = {
            name: module
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" in outside
        }
        if not linear:
            raise ModelError(
                f"{type(self.module).__name__} has no linear layer after its encoder",
                hint="only models with a linear classifier can be aligned",
            )
        if len(linear) > 1:
            names = ", ".join(linear)
            raise ModelError(
                f"{type(self.module).__name__} has more than one linear layer in its head: {names}",
                hint="heads of several layers cannot be aligned yet",
            )
        (name, layer), *_ = linear.items()
        layer.register_forward_pre_hook(self._capture)
        by_module = {module: key for key, module in self._names.items()}
        return by_module[f"{name}.weight"].removesuffix(".weight")

    def _capture(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._captured.append(inputs[0])


def checkpoint_names(module: nn.Module) -> dict[str, str]:
    """Map the names tensors have in a file to those in the built model.

    transformers 5 renames on loading and saving; so let it save a model of one-element tensors
    that are numbered, and read the numbers back.
    """
    names = list(module.state_dict())
    numbered = {name: torch.tensor([index]) for index, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder, quiet():
        module.save_pretrained(folder, state_dict=numbered)  # type: ignore[operator]
        with Checkpoint.open(Path(folder)) as saved:
            return {key: names[int(saved.read(key))] for key in saved.entries}


def read_head(read: Callable[[str], Tensor], keys: Iterable[str], layer: str) -> Head:
    """Read the linear layer of that name as a head, in float32."""
    present = set(keys)
    if f"{layer}.weight" not in present:
        raise ModelError(
            f"there is no head: tensor {layer}.weight is missing",
            hint="was the model merged without recognising its heads? merge with --heads GLOB",
        )
    bias = read(f"{layer}.bias").float() if f"{layer}.bias" in present else None
    return Head(read(f"{layer}.weight").float(), bias)
