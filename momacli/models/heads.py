"""Heads of built networks: the layer that absorbs A_t, and the code that comes after it.

The first linear layer of the head that a forward pass calls is found by running one. What
follows it is the network's own code: it runs again with the modules of the encoder answering
what they answered for one recorded sample, so it costs next to nothing, and with the first
layer answering what the caller says.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from momacli.errors import ModelError
from momacli.models.interface import Batch
from momacli.shapes import Float

_ROWS = 256  # samples that go through the rest of a head together


@dataclass(frozen=True)
class Recording:
    """One forward pass: which layer came first, and what the encoder said of one sample."""

    layer: str  # name of the head's first linear layer
    features: Float[Tensor, "N d"]  # its input
    logits: Float[Tensor, "N C"]
    sample: Mapping[str, Any]  # the inputs of one sample
    answers: Mapping[nn.Module, tuple[Any, ...]]  # what encoder modules returned for it, in order


def linear_layers(module: nn.Module, heads: Collection[str]) -> dict[str, nn.Linear]:
    """The linear layers among the head's tensors. Raises ModelError if there is none."""
    found = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" in heads
    }
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no linear layer after its encoder",
            hint="only models with a linear classifier can be aligned",
        )
    return found


@torch.no_grad()
def record(
    module: nn.Module, heads: Collection[str], batch: Batch, *, verified: bool = False
) -> Recording:
    """Run one forward pass and note what `Recording` holds.

    verified: the caller compares what comes out with the whole head, so that modules around the
        linear layers may have weights of their own, to use after them.

    Raises ModelError if a layer of the head with weights of its own comes before the first
    linear one: its output would depend on the task, and could not be shared features.
    """
    linear = {layer: name for name, layer in linear_layers(module, heads).items()}
    encoder = _encoder_modules(module, heads)
    answers: dict[nn.Module, list[Any]] = {}
    inputs: list[tuple[str, Tensor]] = []
    early: list[str] = []

    def answered(part: nn.Module, _inputs: object, output: object) -> None:
        answers.setdefault(part, []).append(_one(output, count))

    def called(part: nn.Module, given: tuple[Any, ...]) -> None:
        if part in linear:
            inputs.append((linear[part], given[0]))
        elif not inputs:
            early.append(names[part])

    count = len(next(iter(batch.values())))
    names = {part: name for name, part in module.named_modules()}
    own = [
        part
        for part, name in names.items()
        if any(f"{name}.{key}" in heads for key, _ in part.named_parameters(recurse=False))
        and not (verified and part not in linear and any(one in linear for one in part.modules()))
    ]
    hooks = [part.register_forward_hook(answered) for part in encoder]
    hooks += [part.register_forward_pre_hook(called) for part in own]
    try:
        logits: Tensor = module(**batch).logits
    finally:
        for hook in hooks:
            hook.remove()
    if early:
        raise ModelError(
            f"{type(module).__name__}: parts of its head come before the first linear layer",
            details=early,
            hint="merge them with the encoder: name only the linear layers with merge --heads",
        )
    layer, features = inputs[0]
    kept = {part: tuple(outputs) for part, outputs in answers.items()}
    return Recording(layer, features, logits, _one(dict(batch), count), kept)


class RestOfHead:
    """What a network does after its head's first linear layer, with one task's weights."""

    def __init__(self, module: nn.Module, recording: Recording, tensors: Mapping[str, Tensor]):
        """tensors: the head's, by their names in the module."""
        self._module = module
        self._recording = recording
        self._tensors = dict(tensors)
        self._first = module.get_submodule(recording.layer)

    def __call__(self, hidden: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch C"]:
        """Return the logits for outputs of the first linear layer; differentiable."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = torch.cat([self._run(rows) for rows in flat.split(_ROWS)])
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def _run(self, hidden: Float[Tensor, "n k"]) -> Float[Tensor, "n C"]:
        count = len(hidden)
        inputs = _repeated(self._recording.sample, count)
        with contextlib.ExitStack() as stack:
            for part, outputs in self._recording.answers.items():
                replies = iter(_repeated(outputs, count))
                stack.enter_context(_answering(part, partial(next, replies)))
            stack.enter_context(_answering(self._first, lambda: hidden))
            output = torch.func.functional_call(self._module, self._tensors, (), inputs)
        logits: Tensor = output.logits
        return logits


def _encoder_modules(module: nn.Module, heads: Collection[str]) -> list[nn.Module]:
    """The largest modules that have tensors, none of them the head's."""
    found: list[nn.Module] = []
    pending = [("", module)]
    while pending:
        prefix, current = pending.pop()
        names = [prefix + name for name, _ in current.named_parameters()]
        if names and not any(name in heads for name in names):
            found.append(current)
        else:
            pending += [(f"{prefix}{name}.", child) for name, child in current.named_children()]
    return found


@contextlib.contextmanager
def _answering(part: nn.Module, reply: Callable[[], object]) -> Iterator[None]:
    """Let a module answer without computing anything."""
    part.__dict__["forward"] = lambda *_args, **_options: reply()
    try:
        yield
    finally:
        del part.__dict__["forward"]


def _one(value: Any, count: int) -> Any:
    """The first sample's share of the inputs or outputs of `count` samples; no caches."""
    if isinstance(value, Tensor):
        return value[:1] if value.ndim and len(value) == count else value
    return _mapped(value, lambda item: _one(item, count))


def _repeated(value: Any, count: int) -> Any:
    """One sample's inputs or outputs, `count` times over, in the memory of one."""
    if isinstance(value, Tensor):
        alone = value.ndim and len(value) == 1
        return value.expand(count, *value.shape[1:]) if alone else value
    return _mapped(value, lambda item: _repeated(item, count))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        kept = {key: function(item) for key, item in value.items()}
        return type(value)(**kept)
    if isinstance(value, (tuple, list)):
        return type(value)([function(item) for item in value])
    return value if isinstance(value, (bool, int, float, str)) else None
