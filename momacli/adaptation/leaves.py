"""An encoder's parameters as one vector, and their gradients one by one.

The merged weights are leaves: no autograd graph runs through the merge, whatever it is, so that
the memory does not grow with the number of tasks. A gradient can be used up in the midst of the
backward pass that made it, so that there is no vector of all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from momacli.shapes import Float

LOSS_SCALE = 2.0**64
"""What a loss is multiplied by before its gradient is taken, and this divided by again.

Where a model is sure of its answers, the gradient of their entropy is below the normal numbers of
float32, with which processors compute several times as slowly, and less precisely. A power of two
changes nothing else.
"""

_BLOCK = 1 << 18
"""Entries of some vectors that are in the cache together."""


def blocks(part: slice) -> Iterator[slice]:
    """The pieces of a part of a vector that are computed with one after the other."""
    for start in range(part.start, part.stop, _BLOCK):
        yield slice(start, min(start + _BLOCK, part.stop))


class Leaves:
    """Parameters that are views of `theta`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        """Take over the parameters with the values they have."""
        self.names = list(parameters)
        self._parameters = list(parameters.values())
        self.shapes = [parameter.shape for parameter in self._parameters]
        ends = torch.tensor([parameter.numel() for parameter in self._parameters]).cumsum(0)
        stops = ends.tolist()
        self.slices = [slice(*pair) for pair in zip([0, *stops], stops, strict=False)]
        self.theta: Float[Tensor, " n"] = torch.cat(
            [parameter.detach().reshape(-1).float() for parameter in self._parameters]
        )
        for parameter, part, shape in self._places():
            parameter.data = self.theta[part].view(shape)
            parameter.requires_grad_(True)

    def _places(self) -> Iterator[tuple[nn.Parameter, slice, torch.Size]]:
        return zip(self._parameters, self.slices, self.shapes, strict=True)

    @contextmanager
    def handing_over(self, take: Callable[[int, Float[Tensor, " n"]], bool]) -> Iterator[None]:
        """Show each gradient as soon as a backward pass has made it.

        take: is given the number of the parameter and LOSS_SCALE dL/dtheta_m of it, and returns
            whether that is used up; if not it stays, and the next pass adds to it.
        """

        def shown_as(number: int) -> Callable[[Tensor], None]:
            def show(parameter: Tensor) -> None:
                assert parameter.grad is not None
                if take(number, parameter.grad.reshape(-1)):
                    parameter.grad = None

            return show

        hooks = [
            parameter.register_post_accumulate_grad_hook(shown_as(number))
            for number, parameter in enumerate(self._parameters)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def gradients(self) -> Iterator[Float[Tensor, " n"]]:
        """What has stayed of each parameter, zeros where it has no part in the loss."""
        for parameter in self._parameters:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            yield found.reshape(-1)

    def drop_gradients(self) -> None:
        """Let the next backward pass begin without."""
        for parameter in self._parameters:
            parameter.grad = None

    def merged(self) -> dict[str, Tensor]:
        """A copy of the present values, by name, in the processor's memory."""
        places = zip(self.names, self.slices, self.shapes, strict=True)
        return {name: self.theta[part].view(shape).cpu().clone() for name, part, shape in places}

    def release(self) -> None:
        """Stop learning: drop the gradients."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        self.drop_gradients()
