"""One mask for all task vectors, learned while it is drawn at random (arXiv:2312.06173).

    u ~ U(0, 1)    s = sigmoid((x + logit u) / temperature)     a relaxed Bernoulli(sigmoid(x))
    m = s / mean(s), tensor by tensor
    theta_m = theta_0 + m * sum_t lambda_t tau_t

The mask is shared by the tasks, so that one aggregate takes the place of T masked task vectors.
With h = (sum_t lambda_t tau_t) * dL/dtheta_m, and n entries in a tensor:

    dL/ds = h / mean(s) - <h, s> / (n mean(s)^2)
    dL/dx = dL/ds * s (1 - s) / temperature
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.adaptation.leaves import LOSS_SCALE, blocks

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SMALLEST = 2.0**-24


def relaxed_bernoulli(
    x: Float[Tensor, " n"], u: Float[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """Return s, 0 to 1, with logits x; at temperature 0 it would be 0 or 1.

    u: random numbers from 0 to 1; it is overwritten.
    """
    u.clamp_(_SMALLEST, 1 - _SMALLEST)
    return u.logit_().add_(x).div_(temperature).sigmoid_()


def mean_of(s: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return mean(s), which s is divided by, so that a mask keeps the size of what it masks."""
    return s.mean().clamp(min=_SMALLEST)


def pull_back(
    h: Float[Tensor, " k"],
    s: Float[Tensor, " k"],
    mean: Float[Tensor, ""],
    offset: Float[Tensor, ""],
    temperature: float,
) -> Float[Tensor, " k"]:
    """Return dL/dx of some entries of a tensor, where h = dL/dm of m = s / mean(s).

    mean, offset: mean(s) and <h, s> / (n mean(s)) of all n entries.
    """
    gradient = (h - offset).mul_(s).div_(temperature * mean)
    return torch.addcmul(gradient, gradient, s, value=-1, out=gradient)


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
    def draw(self, uniform: Callable[[int], Tensor]) -> None:
        """Draw another mask, from as many random numbers at a time as are asked for."""
        for piece in (piece for part in self._slices for piece in blocks(part)):
            x = self.x[piece]
            self._s[piece] = relaxed_bernoulli(x, uniform(len(x)), self._temperature)

    @torch.no_grad()
    def expect(self) -> None:
        """Take sigmoid(x), the probability of each entry, for the mask."""
        torch.sigmoid(self.x, out=self._s)

    def masked(
        self,
        part: slice,
        tau: Float[Tensor, " n"],
        *,
        plus: Float[Tensor, " n"] | None = None,
        out: Float[Tensor, " n"],
    ) -> None:
        """Write m * tau of one tensor, added to another, in `out`."""
        s, scale = self._s[part], 1 / mean_of(self._s[part])
        for piece in blocks(slice(0, len(s))):
            if plus is None:
                torch.mul(tau[piece], s[piece] * scale, out=out[piece])
            else:
                torch.addcmul(plus[piece], tau[piece], s[piece] * scale, out=out[piece])

    @torch.no_grad()
    def step(
        self, part: slice, gradient: Float[Tensor, " n"], tau: Float[Tensor, " n"], *, rate: float
    ) -> None:
        """Move x of one tensor by one step of Adam; all tensors have to be moved in a step.

        gradient: LOSS_SCALE dL/dtheta_m; it is overwritten. tau: what the mask is on.
        """
        if part.start == 0:
            self._taken += 1
        s, h = self._s[part], gradient
        offset, mean = torch.zeros_like(s[:1].sum()), mean_of(s)
        for piece in blocks(slice(0, len(s))):
            h[piece].mul_(tau[piece]).mul_(1 / LOSS_SCALE)
            offset += h[piece] @ s[piece] / (len(s) * mean)
        correction_1, correction_2 = (1 - beta**self._taken for beta in _BETAS)
        for piece in blocks(part):
            inside = slice(piece.start - part.start, piece.stop - part.start)
            slope = pull_back(h[inside], s[inside], mean, offset, self._temperature)
            m, v = self._m[piece], self._v[piece]
            m.lerp_(slope, 1 - _BETAS[0])
            v.mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
            scale = (v / correction_2).sqrt_().add_(_EPSILON)
            self.x[piece].addcdiv_(m, scale, value=-rate / correction_1)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step, but for a drawn mask."""
        taken = torch.tensor([float(self._taken)])
        return {"x": self.x, "m": self._m, "v": self._v, "s": self._s, "mask_steps": taken}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        for name, value in (("x", self.x), ("m", self._m), ("v", self._v), ("s", self._s)):
            value.copy_(state[name])
        self._taken = int(state["mask_steps"])
