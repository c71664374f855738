"""One mask for all task vectors, learned while it is drawn at random (arXiv:2312.06173).

    u ~ U(0, 1)    s = sigmoid((x + logit u) / temperature)     a relaxed Bernoulli(sigmoid(x))
    m = s / mean(s), tensor by tensor
    theta_m = theta_0 + m * sum_t lambda_t tau_t

The mask is shared by the tasks, so that one aggregate takes the place of T masked task vectors.
With h = (sum_t lambda_t tau_t) * dL/dtheta_m, and n entries in a tensor:

    dL/ds = h / mean(s) - <h, s> / (n mean(s)^2)
    dL/dx = dL/ds * s (1 - s) / temperature
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SMALLEST = 2.0**-24


def relaxed_bernoulli(
    x: Float[Tensor, " n"], temperature: float, generator: torch.Generator
) -> Float[Tensor, " n"]:
    """Draw s, 0 to 1, with logits x; at temperature 0 it would be 0 or 1."""
    u = torch.rand(x.shape, generator=generator, device=x.device).clamp_(_SMALLEST, 1 - _SMALLEST)
    return u.logit_().add_(x).div_(temperature).sigmoid_()


def rescaled(s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return s / mean(s), so that a mask keeps the size of what it masks."""
    return s / s.mean().clamp(min=_SMALLEST)


def pull_back(
    h: Float[Tensor, " n"], s: Float[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """Return dL/dx, where h = dL/dm of m = s / mean(s)."""
    mean = s.mean().clamp(min=_SMALLEST)
    gradient = h - (h @ s) / (s.numel() * mean)
    return gradient.mul_(s).mul_(1 - s).div_(temperature * mean)


class ConcreteMask:
    """x, learned by Adam, and the mask that was drawn last, of the tensors of an encoder.

    Four vectors of the encoder's size: x, Adam's two moments, and s.
    """

    def __init__(
        self, slices: Sequence[slice], *, start: float, temperature: float, device: torch.device
    ):
        """slices: of the tensors in one vector; start: of every x."""
        total = slices[-1].stop
        self._slices, self._temperature = slices, temperature
        self.x = torch.full((total,), start, device=device)
        self._m, self._v = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self._s = torch.empty_like(self.x)
        self._taken = 0

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw another mask."""
        for part in self._slices:
            self._s[part] = relaxed_bernoulli(self.x[part], self._temperature, generator)

    @torch.no_grad()
    def expect(self) -> None:
        """Take sigmoid(x), the probability of each entry, for the mask."""
        torch.sigmoid(self.x, out=self._s)

    def mask(self, part: slice) -> Float[Tensor, " n"]:
        """M of one tensor."""
        return rescaled(self._s[part])

    @torch.no_grad()
    def step(self, part: slice, h: Float[Tensor, " n"], *, rate: float) -> None:
        """Move x of one tensor by one step of Adam; all tensors have to be moved in a step."""
        if part.start == 0:
            self._taken += 1
        gradient = pull_back(h, self._s[part], self._temperature)
        m, v = self._m[part], self._v[part]
        m.lerp_(gradient, 1 - _BETAS[0])
        v.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = (v / (1 - _BETAS[1] ** self._taken)).sqrt_().add_(_EPSILON)
        self.x[part].addcdiv_(m, scale, value=-rate / (1 - _BETAS[0] ** self._taken))

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step, but for a drawn mask."""
        taken = torch.tensor([float(self._taken)])
        return {"x": self.x, "m": self._m, "v": self._v, "s": self._s, "mask_steps": taken}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        for name, value in (("x", self.x), ("m", self._m), ("v", self._v), ("s", self._s)):
            value.copy_(state[name])
        self._taken = int(state["mask_steps"])
