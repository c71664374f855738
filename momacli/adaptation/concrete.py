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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from momacli.adaptation.ensemble import Ensemble, Merged
from momacli.adaptation.leaves import LOSS_SCALE, Leaves, blocks
from momacli.compiled.training_loops import adam_of_mask, product_of_three
from momacli.shapes import Float

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SMALLEST = 2.0**-24

LastMask = Literal["sampled", "expected"]


def whole(ensemble: Ensemble, leaves: Leaves, lam: float) -> Merged:
    """All tensors, when learning is over: the leaves, and the others by task arithmetic."""
    leaves.release()
    others = [name for name in ensemble.tensors if name not in leaves.names]
    return leaves.merged() | {name: ensemble.task_arithmetic(name, lam) for name in others}


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
    h: Float[Tensor, " n"], s: Float[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """Return dL/dx, where h = dL/dm of m = s / mean(s)."""
    mean = mean_of(s)
    gradient = h - (h @ s) / (s.numel() * mean)
    return gradient.mul_(s).mul_(1 - s).div_(temperature * mean)


@dataclass(frozen=True)
class Logits:
    """x of one tensor, Adam's moments of it, and the s that was drawn with it, all [n]."""

    x: Tensor
    m: Tensor
    v: Tensor
    s: Tensor


def compiled_step(
    of: Logits, gradient: Tensor, tau: Tensor, temperature: float, rate: float, number: int
) -> None:
    """Move x by Adam's step of this number, in two passes over the entries; on the CPU.

    gradient: LOSS_SCALE dL/dtheta_m. tau: what the mask is on.
    """
    given = (gradient.numpy(), tau.numpy(), of.s.numpy())
    mean = float(mean_of(of.s))
    offset = product_of_three(*given) / (LOSS_SCALE * len(of.s) * mean)
    factor, (correction_1, correction_2) = 1 / (temperature * mean), _corrections(number)
    adam_of_mask(
        of.x.numpy(), of.m.numpy(), of.v.numpy(), *given, 1 / LOSS_SCALE, offset, factor,
        rate * correction_2**0.5 / correction_1, _EPSILON * correction_2**0.5,
    )  # fmt: skip


def torch_step(
    of: Logits, gradient: Tensor, tau: Tensor, temperature: float, rate: float, number: int
) -> None:
    """Do the same on any device."""
    slope = pull_back((gradient * tau).div_(LOSS_SCALE), of.s, temperature)
    correction_1, correction_2 = _corrections(number)
    of.m.lerp_(slope, 1 - _BETAS[0])
    of.v.mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
    scale = (of.v / correction_2).sqrt_().add_(_EPSILON)
    of.x.addcdiv_(of.m, scale, value=-rate / correction_1)


def _corrections(number: int) -> tuple[float, float]:
    return 1 - _BETAS[0] ** number, 1 - _BETAS[1] ** number


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
    def draw_last(self, last: LastMask, uniform: Callable[[int], Tensor]) -> None:
        """Draw the mask that stays or, for "expected", take sigmoid(x), each probability."""
        if last == "sampled":
            self.draw(uniform)
        else:
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

        gradient: LOSS_SCALE dL/dtheta_m. tau: what the mask is on.
        """
        if part.start == 0:
            self._taken += 1
        logits = Logits(self.x[part], self._m[part], self._v[part], self._s[part])
        step = compiled_step if self.x.device.type == "cpu" else torch_step
        step(logits, gradient, tau, self._temperature, rate, self._taken)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step, but for a drawn mask."""
        taken = torch.tensor([float(self._taken)])
        return {"x": self.x, "m": self._m, "v": self._v, "s": self._s, "mask_steps": taken}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        for name, value in (("x", self.x), ("m", self._m), ("v", self._v), ("s", self._s)):
            value.copy_(state[name])
        self._taken = int(state["mask_steps"])
