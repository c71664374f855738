"""The blocks of an encoder, behind each of which its features can be read and changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from momacli.errors import ModelError
from momacli.models.interface import Batch
from momacli.shapes import Float

Change = Callable[[int, Tensor], Tensor]
"""The number of a block and the tokens [n, l, d] that it makes -> what goes on from there."""


def find_blocks(
    module: nn.Module, features: Callable[[Batch], Tensor], batch: Batch
) -> list[nn.Module]:
    """The encoder's blocks, in order: the longest list of modules of one class that make tokens.

    A list that is itself within a block is none. Which modules make tokens [n, l, d] of n
    samples, a few real samples tell.

    features: runs the module on a batch.

    Raises ModelError where there is no such list, or several are as long, as in an encoder with
    a decoder.
    """
    lists = [one for one in module.modules() if isinstance(one, nn.ModuleList | nn.Sequential)]
    alike = [one for one in lists if len({type(each) for each in one}) == 1]
    shapes: dict[int, tuple[int, ...]] = {}

    def note(one: nn.Module, _inputs: object, output: object) -> None:
        shapes[id(one)] = tuple(_tokens(output).shape)

    handles = [each.register_forward_hook(note) for one in alike for each in one]
    try:
        with torch.no_grad():
            features(batch)
    finally:
        for handle in handles:
            handle.remove()
    samples = len(next(iter(batch.values())))
    outer: list[nn.Module] = []  # what is in a block is none; whole modules come before parts
    for one in alike:
        parts = {id(part) for whole in outer for part in whole.modules()}
        if id(one) not in parts and all(_fits(shapes.get(id(each)), samples) for each in one):
            outer.append(one)
    longest = max((len(list(one.children())) for one in outer), default=0)
    found = [list(one.children()) for one in outer if len(list(one.children())) == longest]
    if len(found) == 1:
        return found[0]
    kind = type(module).__name__
    why = "there are several lists of blocks" if found else "its blocks make no tokens"
    raise ModelError(
        f"a {kind} cannot have an adapter behind each block: {why}",
        hint="align it by surgery, whose adapter is behind the encoder",
    )


@contextmanager
def changing(blocks: Sequence[nn.Module], change: Change) -> Iterator[None]:
    """Let what blocks make be changed on its way to the next."""

    def changed(number: int) -> Callable[[nn.Module, object, object], object]:
        def after(_module: nn.Module, _inputs: object, output: object) -> object:
            tokens = change(number, _tokens(output))
            return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

        return after

    handles = [block.register_forward_hook(changed(n)) for n, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_mean(tokens: Float[Tensor, "n l d"], batch: Batch) -> Float[Tensor, "n d"]:
    """The mean of each sample's tokens; padding, which an attention mask names, is none."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != tokens.shape[:2]:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype).unsqueeze(2)
    return (weights * tokens).sum(dim=1) / weights.sum(dim=1)


def _tokens(output: object) -> Tensor:
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) else torch.empty(0)


def _fits(shape: tuple[int, ...] | None, samples: int) -> bool:
    return shape is not None and len(shape) == 3 and shape[0] == samples
