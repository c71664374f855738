"""`transformers` models for image and text classification, split at their head by structure.

The features are the input of the head's first linear layer, whatever lies between it and the
encoder (a pooler, the choice of a token).
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.renaming import common_prefix
from momacli.errors import ModelError
from momacli.models.factory import build, build_network, quiet
from momacli.models.heads import Recording, RestOfHead, linear_layers, record
from momacli.models.interface import Batch, Head
from momacli.models.layout import head_names, sized_config
from momacli.shapes import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Network:
    """A built network in evaluation mode; tensors go by their checkpoint names."""

    head_tensors: Sequence[str]  # names of a task's head, where there is one
    parameters: Mapping[str, nn.Parameter]  # of the encoder
    buffers: Mapping[str, Tensor]

    def __init__(
        self, module: nn.Module, entries: Mapping[str, TensorEntry], device: torch.device | str
    ):
        self.module = module.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        names = _under_prefix_of(checkpoint_names(self.module), entries)
        self._names, self._twice = _stored(names, self.module, entries)

    def _offer_parameters(self, wanted: Callable[[str], bool]) -> None:
        """Let the encoder be the tensors whose checkpoint names are wanted."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers())
        names = {key: name for key, name in self._names.items() if wanted(key)}
        self.parameters = {key: own[name] for key, name in names.items() if name in own}
        self.buffers = {key: buffers[name] for key, name in names.items() if name in buffers}

    def load(self, read: Callable[[str], Tensor], keys: Iterable[str], *, source: str) -> None:
        """Replace all weights; `keys` must be exactly the model's tensors.

        Raises ModelError listing what is missing or unexpected.
        """
        given = set(keys)
        wrong = [f"{shown(key)}   missing" for key in self._names if key not in given]
        unexpected = sorted(key for key in given - set(self._names) if not _is_numbering(key))
        wrong += [f"{shown(key)}   unexpected" for key in unexpected]
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


class Classifier(Network):
    """A classification model in evaluation mode; tensors go by their checkpoint names."""

    def __init__(
        self,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        heads: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        """Build the network of a config, with the number of classes that `entries` have.

        heads: names of the head's tensors, by default as the architecture has them.
        """
        heads = head_names(config, entries) if heads is None else heads
        super().__init__(build(sized_config(config, entries, heads)), entries, device)
        self._keys = {name: key for key, name in self._names.items()}
        self._head = {self._names[key]: key for key in heads if key in self._names}
        self.head_tensors = tuple(self._head.values())
        self._linear = linear_layers(self.module, self._head)
        self._recording: Recording | None = None
        self._features: Tensor | None = None  # of the pass under way
        self._first = ""
        if len(self._linear) == 1:
            self._watch(next(iter(self._linear)))
        self._offer_parameters(lambda key: self._names[key] not in self._head)

    @property
    def head_name(self) -> str:
        """Checkpoint name of the layer that absorbs A_t; of several, known after `find_head`."""
        return self._keys[f"{self._first}.weight"].removesuffix(".weight")

    def find_head(self, batch: Batch) -> None:
        """Find the first layer of the head with a few real samples, and check that it is all.

        Raises ModelError if the logits depend on the features in another way too, or if tied
        tensors are stored more than once, for they could come apart.
        """
        if self._twice:
            raise ModelError(
                f"tensors that are one in a {type(self.module).__name__} are stored several times",
                details=[" = ".join(shown(key) for key in keys) for keys in self._twice],
                hint="load and save the models with transformers, which keeps one of each",
            )
        found = record(self.module, self._head, batch)
        if not self._first:
            self._watch(found.layer)
        self._recording = found
        state = self.module.state_dict()
        head = self.head(lambda key: state[self._names[key]], self._names)
        with torch.no_grad():
            again = head(_vectors(self.module, found.features))
        if not torch.allclose(again.float(), found.logits.float(), rtol=1e-2, atol=1e-3):
            raise ModelError(
                f"{type(self.module).__name__}: its logits are not a function of the input of "
                f"{self.head_name} alone",
                hint="heads that use the features in several places cannot be aligned",
            )

    def head(self, read: Callable[[str], Tensor], keys: Iterable[str]) -> Head:
        """Read a task's head, in float32."""
        device = self.device
        head = read_head(lambda key: read(key).to(device), keys, self.head_name)
        if len(self._linear) == 1:
            return head
        assert self._recording is not None
        tensors = {name: read(key).float().to(device) for name, key in self._head.items()}
        return Head(head.weight, head.bias, RestOfHead(self.module, self._recording, tensors))

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the input of the head's first linear layer."""
        self.module(**batch)
        return _vectors(self.module, self._taken())

    def logits(self, batch: Batch) -> Float[Tensor, "N C"]:
        """Return the whole model's logits, computed by transformers itself."""
        return self.answer(batch)[0]

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N d"] | None]:
        """Return the logits, and the features they were made of if it is known where they are."""
        logits: Tensor = self.module(**batch).logits
        found = self._taken()
        return logits, None if found is None or found.ndim != 2 else found

    def _taken(self) -> Tensor | None:
        """The features of the pass that has ended."""
        found, self._features = self._features, None
        return found

    def _watch(self, layer: str) -> None:
        """Note the input of a layer in every forward pass."""
        self._first = layer
        self._linear[layer].register_forward_pre_hook(self._capture)

    def _capture(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]


def _vectors(module: nn.Module, features: Tensor | None) -> Float[Tensor, "N d"]:
    if features is None or features.ndim != 2:
        raise ModelError(
            f"{type(module).__name__}: its head takes features of an unexpected form",
            hint="only one feature vector a sample can be aligned",
        )
    return features


def checkpoint_names(module: nn.Module) -> dict[str, str]:
    """Map the names tensors have in a file to those in the built model, in the model's order.

    A tied tensor is there under each of its names.

    transformers 5 renames on loading and saving; so let it save a model of one-element tensors
    that are numbered, and read the numbers back.
    """
    names = list(module.state_dict())
    if not hasattr(module, "save_pretrained"):  # open_clip saves what there is
        return {name: name for name in names}
    numbered = {name: torch.tensor([index]) for index, name in enumerate(names)}
    with tempfile.TemporaryDirectory() as folder, quiet():
        cast("PreTrainedModel", module).save_pretrained(folder, state_dict=numbered)
        with Checkpoint.open(Path(folder)) as saved:
            numbers = {int(saved.read(key)): key for key in saved.entries}
    return {numbers[index]: name for index, name in enumerate(names) if index in numbers}


def _is_numbering(key: str) -> bool:
    """Whether a tensor just counts positions, as older versions of transformers saved them."""
    return key.rpartition(".")[2] == "position_ids"


def stored_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The names that a file has for the tensors of a network, by those of the network.

    No memory is taken for weights. Raises ModelError as `build_network` does.
    """
    with torch.device("meta"):
        module = build_network(config)
    return {name: key for key, name in checkpoint_names(module).items()}


def tensor_names(config: Mapping[str, Any], entries: Collection[str]) -> set[str]:
    """The names of a classifier's tensors in a file; of tied ones those that are in `entries`.

    No memory is taken for weights. Raises ModelError as `build` does.
    """
    with torch.device("meta"):
        module = build(config)
    names = _under_prefix_of(checkpoint_names(module), entries)
    return set(_stored(names, module, entries)[0])


def _under_prefix_of(names: Mapping[str, str], entries: Collection[str]) -> dict[str, str]:
    """The names with the prefix that a file puts before all of them, or takes from them."""
    prefix = common_prefix(names, entries)
    if prefix.startswith("+"):
        return {prefix[1:] + key: name for key, name in names.items()}
    return {key.removeprefix(prefix[1:]): name for key, name in names.items()}


def _stored(
    names: Mapping[str, str], module: nn.Module, entries: Collection[str]
) -> tuple[dict[str, str], list[list[str]]]:
    """Of the names of tied tensors, those that a file has; and what it stores several times.

    One of a tensor's names is enough, whichever it is.
    """
    state = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for key, name in names.items():
        tied.setdefault(id(state[name]), []).append(key)
    stored = [[key for key in keys if key in entries] or keys[:1] for keys in tied.values()]
    wanted = {key for keys in stored for key in keys}
    kept = {key: name for key, name in names.items() if key in wanted}
    return kept, [keys for keys in stored if len(keys) > 1]


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
