"""Any network of `transformers` whose features are said by a rule, with a head after them.

For encoders without a head (a plain BertModel, sentence-transformers), for models that were
trained with another pooling than their class has, and for architectures that moma does not
know: features are what a module puts out, made one vector a sample.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from momacli.checkpoint.feature_rule import POOLINGS, FeatureRule, rule_of
from momacli.checkpoint.header import TensorEntry
from momacli.errors import ModelError, UsageError
from momacli.models.factory import build_network
from momacli.models.heads import Recording, RestOfHead, linear_layers, record
from momacli.models.interface import Batch, Head
from momacli.models.layout import head_names, linear_beside, sized_config
from momacli.models.separate_head import SeparateHead, unit_norm
from momacli.shapes import Float

_FAILURES = (TypeError, ValueError, IndexError, AttributeError)
"""What networks raise when they are given something else than they were made for."""


class PooledNetwork(SeparateHead):
    """An encoder, a rule that says what its features are, and a head.

    The head is a module of the network or, where that has none, a linear layer in tensors beside.
    """

    missing_hint = "name its tensors or its module with --heads, or put head_TASK.safetensors there"

    def __init__(
        self,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        *,
        heads: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        """Build the network of a config that states a rule.

        heads: names of the head's tensors, by default what the architecture says, or the one
            linear layer that the network does not have.
        """
        self._rule = rule_of(config) or FeatureRule()
        heads = heads or head_names(config, entries)
        pooler = any(".pooler." in f".{key}" for key in entries)
        module = build_network(sized_config(config, entries, heads), pooler=pooler)
        super().__init__(module, entries, heads, device)
        heads = heads or linear_beside(entries, self._names)
        self.head_tensors = tuple(heads)
        self._heads = frozenset(key for key in heads if key not in self._names)
        inside = {self._names[key]: key for key in heads if key in self._names}
        self._own_head = _HeadAlone(self.module, inside, self.device) if inside else None
        self.head_name = self._first_layer(heads)
        self._offer_parameters(lambda key: key not in heads)
        self._output: object = None
        if self._rule.module is not None:
            watched = _submodule(self.module, self._rule.module, "--features")
            watched.register_forward_hook(self._capture)

    def _first_layer(self, heads: Sequence[str]) -> str:
        """Checkpoint name of the linear layer that takes the features."""
        if self._own_head is not None:
            return self._own_head.first
        weights = [key for key in heads if key.rpartition(".")[2] == "weight"]
        if len(weights) != 1:
            raise ModelError(
                f"beside the {type(self.module).__name__} there are {len(weights)} layers that "
                "could be its head, expected one linear layer",
                details=weights,
                hint=self.missing_hint,
            )
        return weights[0].removesuffix(".weight")

    def find_head(self, batch: Batch) -> None:
        """Check that features and head fit, and that the head has no other way to the features.

        Raises ModelError.
        """
        with torch.no_grad():
            expected = self.logits(batch)
            assert self._head is not None
            found = self._head(self.features(batch).float())
        if not torch.allclose(found, expected.float(), rtol=1e-2, atol=1e-3):
            raise ModelError(
                f"{type(self.module).__name__}: its logits are not a function of what "
                f"{self.head_name} takes alone",
                hint="heads that use the features in several places cannot be aligned",
            )

    def head(self, read: Callable[[str], Tensor], keys: Iterable[str]) -> Head:
        """Read a task's head, in float32."""
        first = super().head(read, keys)
        if self._own_head is None:
            return first
        rest = self._own_head.rest(lambda key: read(key).float().to(self.device))
        return Head(first.weight, first.bias, rest, first.before)

    def before(self) -> Callable[[Tensor], Tensor] | None:
        """Features are normalised where the rule says so."""
        return unit_norm if self._rule.normalize else None

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return what the rule says, before normalisation."""
        self._output = None
        encoder: Any = self.module
        if self._rule.module is None:
            encoder = getattr(self.module, "base_model", self.module)
        try:
            output = encoder(**batch)
        except _FAILURES as error:
            raise ModelError(
                f"{type(encoder).__name__} cannot be run on {', '.join(batch)}: {error}",
                hint="say what its features are with --features MODULE, or name the encoder's "
                "own class in config.json",
            ) from error
        if self._rule.module is not None:
            output, self._output = self._output, None
        return _vectors(output, batch, self._rule)

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N d"]]:
        """Return the head's logits, of a head within the network by its own code, and features."""
        if self._own_head is None:
            return super().answer(batch)
        features = self.features(batch)
        return self._own_head(unit_norm(features) if self._rule.normalize else features), features

    def _capture(self, _module: nn.Module, _inputs: object, output: object) -> None:
        self._output = output


class _HeadAlone:
    """A module of a network that makes logits of features, without the network."""

    def __init__(self, network: nn.Module, names: Mapping[str, str], device: torch.device):
        """names: its tensors, as the network names them, and their names in the checkpoint."""
        self._path = _common_module(list(names))
        module = _submodule(network, self._path, "--heads")
        self._alone = NamedHead(module)
        skipped = len(self._path) + 1
        self._keys = {f"head.{name[skipped:]}": key for name, key in names.items()}
        linear = linear_layers(self._alone, self._keys)
        width = next(iter(linear.values())).in_features
        try:
            zeros = {"features": torch.zeros(1, width, device=device)}
            self._recording: Recording = record(self._alone, self._keys, zeros, verified=True)
        except _FAILURES as error:
            raise ModelError(
                f"the module {self._path} of {type(network).__name__} cannot be applied to one "
                f"vector a sample: {error}",
                hint="leave --pooling and --features out where the architecture has its own way",
            ) from error
        self._single = isinstance(module, nn.Linear)
        self.first = self._keys[f"{self._recording.layer}.weight"].removesuffix(".weight")

    def __call__(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N C"]:
        """Return the logits by the module's own code and present weights."""
        logits: Tensor = self._alone(features).logits
        return logits

    def rest(self, read: Callable[[str], Tensor]) -> RestOfHead | None:
        """What comes after the first layer, with the weights that `read` gives; may be nothing."""
        if self._single:
            return None
        return RestOfHead(
            self._alone, self._recording, {name: read(key) for name, key in self._keys.items()}
        )


class NamedHead(nn.Module):
    """A head as the rest of moma knows whole networks: by an output with logits."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> SimpleNamespace:
        """Return an output with the head's logits."""
        return SimpleNamespace(logits=self.head(features))


def _vectors(output: Any, batch: Batch, rule: FeatureRule) -> Float[Tensor, "N d"]:
    """One vector a sample of what a module put out."""
    if rule.pooling == "pooler":
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ModelError(
                "the encoder has no pooler", hint="choose another --pooling: cls, masked-mean, mean"
            )
        vectors: Tensor = pooled.flatten(1)
        return vectors
    hidden = getattr(output, "last_hidden_state", output)
    if isinstance(hidden, (tuple, list)) and hidden:
        hidden = hidden[0]
    if not isinstance(hidden, Tensor):
        raise ModelError(
            f"{rule.module or 'the encoder'} puts out a {type(hidden).__name__}, expected a tensor",
            hint="choose another module with --features",
        )
    if hidden.ndim == 2 and rule.pooling is None:
        return hidden
    if hidden.ndim == 4 and rule.pooling in ("mean", "masked-mean"):  # places of an image
        return hidden.mean(dim=(2, 3))
    if hidden.ndim != 3 or rule.pooling is None:
        needs = "leave --pooling out" if hidden.ndim == 2 else f"--pooling {'|'.join(POOLINGS)}"
        raise ModelError(
            f"{rule.module or 'the encoder'} puts out {list(hidden.shape)}, which has to become "
            "one vector a sample",
            hint=f"say how: {needs}" if hidden.ndim < 4 else "choose a module with --features",
        )
    return _pooled(hidden, batch, rule)


def _pooled(
    hidden: Float[Tensor, "N L d"], batch: Batch, rule: FeatureRule
) -> Float[Tensor, "N d"]:
    mask = batch.get("attention_mask")
    if rule.pooling == "cls":
        return hidden[:, 0]
    if rule.pooling == "mean" or mask is None:
        return hidden.mean(dim=1)
    if mask.shape != hidden.shape[:2]:
        raise ModelError(
            f"{rule.module} puts out {hidden.shape[1]} positions of {mask.shape[1]} tokens, so "
            "it is unknown which are padding",
            hint="choose another module with --features",
        )
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _common_module(names: Sequence[str]) -> str:
    """The innermost module that holds all these tensors. Raises UsageError if there is none."""
    paths = [name.split(".")[:-1] for name in names]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if not common:
        raise UsageError(
            "the head's tensors lie in several modules of the network",
            details=sorted(names)[:20],
            hint="name the one module that is applied to the features with --heads",
        )
    return ".".join(common)


def _submodule(network: nn.Module, path: str, option: str) -> nn.Module:
    """The module of that dotted path. Raises UsageError naming what there is."""
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in network.named_modules() if 0 < len(name.split(".")) < 3]
        raise UsageError(
            f"{option}: a {type(network).__name__} has no module {path}",
            details=[name for name in known if name][:40],
            hint="these are its upper modules; those within go by dots",
        ) from error
