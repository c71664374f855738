"""An encoder's parameters as one vector, and their gradients as another.

The merged weights are leaves: no autograd graph runs through the merge, whatever it is, so that
the memory does not grow with the number of tasks.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Leaves:
    """Parameters that are views of `theta`, whose gradients are summed in views of `gradient`."""

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
        self.gradient: Float[Tensor, " n"] = torch.zeros_like(self.theta)
        for parameter, part, shape in self._places():
            parameter.data = self.theta[part].view(shape)
            parameter.requires_grad_(True)
            parameter.grad = self.gradient[part].view(shape)

    def _places(self) -> Iterator[tuple[nn.Parameter, slice, torch.Size]]:
        return zip(self._parameters, self.slices, self.shapes, strict=True)

    def merged(self) -> dict[str, Tensor]:
        """A copy of the present values, by name, in the processor's memory."""
        places = zip(self.names, self.slices, self.shapes, strict=True)
        return {name: self.theta[part].view(shape).cpu().clone() for name, part, shape in places}

    def release(self) -> None:
        """Stop learning: drop the gradients."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
