"""The mask on the multi-task vector: merged weights from S, and gradients back to S.

    theta_m = theta_0 + h sigma(S) * tau            (MOMA Eq. 10; h = 1 there)
    dL/dS   = h sigma(S) (1 - sigma(S)) * tau * dL/dtheta_m

theta_m is a leaf: no autograd graph runs through the merge, so memory does not grow with the
number of tasks. All tensors are views into flat vectors, updated in blocks that stay in cache.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from momacli.alignment.sharing import ALONE, add_up, add_up_shares, spread_shares
from momacli.merging.ranks import Ranks
from momacli.shapes import Float

_CACHED, _LAUNCHED = 1 << 18, 1 << 24
"""Entries that are updated at a time: on a processor, what stays in its cache; elsewhere more, for
every block starts some 20 kernels, of some microseconds each (334 blocks for ViT-B/32, or 6)."""

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def masked(
    theta_0: Float[Tensor, "*shape"],
    tau: Float[Tensor, "*shape"],
    mask: Float[Tensor, "*shape"],
    headroom: float,
) -> Float[Tensor, "*shape"]:
    """Return theta_0 + h M * tau."""
    return theta_0 + (headroom * mask) * tau


def pull_back(
    gradient: Float[Tensor, "*shape"],
    tau: Float[Tensor, "*shape"],
    mask: Float[Tensor, "*shape"],
    headroom: float,
    sparsity: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Return the gradient with respect to S of L(theta_m) + sparsity * sum M^2."""
    slope = mask * (1 - mask)
    return slope * (headroom * tau * gradient + 2 * sparsity * mask)


def start_value(headroom: float) -> float:
    """S at which h sigma(S) = 1, the merged model itself; h must be above 1."""
    return -math.log(headroom - 1)


def advance(
    S: Float[Tensor, " n"],
    m: Float[Tensor, " n"],
    v: Float[Tensor, " n"],
    gradient: Float[Tensor, " n"],
    theta: Float[Tensor, " n"],
    theta_0: Float[Tensor, " n"],
    tau: Float[Tensor, " n"],
    headroom: float,
    sparsity: float,
    rate: float,
    correction: float,
) -> None:
    """Move S by one step of Adam with moments m and v, theta with it, and zero the gradient.

    gradient: with respect to theta.
    rate: divided by the first moment's correction, 1 - beta_1^steps; correction: the second's.
    """
    beta_1, beta_2 = _BETAS
    slope = pull_back(gradient, tau, torch.sigmoid(S), headroom, sparsity)
    m.lerp_(slope, 1 - beta_1)
    v.mul_(beta_2).addcmul_(slope, slope, value=1 - beta_2)
    S.addcdiv_(m, (v / correction).sqrt_().add_(_EPSILON), value=-rate)
    gradient.zero_()
    theta.copy_(masked(theta_0, tau, torch.sigmoid(S), headroom))


class MaskedEncoder:
    """An encoder's parameters held as theta_0, tau and S, with Adam's two moments of S.

    Seven vectors of the encoder's size in all: these five, theta_m, and its gradient. Of several
    processes each has theta_m and its gradient, and a share of the five.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        read_base: Callable[[str], Tensor],
        *,
        headroom: float,
        start: float,
        ranks: Ranks = ALONE,
    ):
        """Take over the parameters, which now hold the merged model's values; then `restart`."""
        self.headroom = headroom
        self._start = start
        self._ranks = ranks
        self._names = list(parameters)
        self._parameters = [parameters[name] for name in self._names]
        self._offsets = [0, *accumulate(parameter.numel() for parameter in self._parameters)]
        self._total, device = self._offsets[-1], self._parameters[0].device
        share = -(-self._total // ranks.count)
        self._own = slice(ranks.number * share, (ranks.number + 1) * share)
        self._theta, self._gradient = (
            torch.zeros(share * ranks.count, device=device) for _ in range(2)
        )
        self._theta_0, self._tau, self._S, self._m, self._v = (
            torch.zeros(share, device=device) for _ in range(5)
        )
        self._block = _CACHED if device.type == "cpu" else _LAUNCHED
        self._take_over(read_base)
        torch.sub(self._theta[self._own], self._theta_0, out=self._tau)

    def _take_over(self, read_base: Callable[[str], Tensor]) -> None:
        """Let the parameters be views of one vector, and theta_0 what the base has there."""
        for name, parameter, start, stop in self._places():
            self._theta[start:stop].copy_(parameter.detach().reshape(-1))
            parameter.data = self._theta[start:stop].view(parameter.shape)
            parameter.requires_grad_(True)
            parameter.grad = self._gradient[start:stop].view(parameter.shape)
            low, high = max(start, self._own.start), min(stop, self._own.stop)
            if low < high:
                base = read_base(name).reshape(-1)[low - start : high - start]
                self._theta_0[low - self._own.start : high - self._own.start].copy_(base)

    def _places(self) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Each parameter, and where it is in the flat vectors."""
        yield from zip(
            self._names, self._parameters, self._offsets, self._offsets[1:], strict=False
        )

    @property
    def _owned(self) -> int:
        """How many of the parameters are this process's; the last shares may be shorter."""
        return max(0, min(self._own.stop, self._total) - self._own.start)

    def _whole(self, shares: Float[Tensor, " s"]) -> Float[Tensor, " P"]:
        """The shares of all processes together."""
        if self._ranks.count == 1:
            return shares
        flat = torch.zeros_like(self._theta)
        flat[self._own] = shares
        spread_shares(flat, self._ranks)
        return flat[: self._total]

    def restart(self) -> None:
        """Go back to the start, before any step."""
        self.steps = 0
        self._S.fill_(self._start)
        for vector in (self._m, self._v, self._gradient):
            vector.zero_()
        self._write_back()

    def masks(self) -> dict[str, Tensor]:
        """M = sigma(S), by tensor name, in each tensor's shape."""
        S = self._whole(self._S)
        return {
            name: torch.sigmoid(S[start:stop]).view(parameter.shape).cpu()
            for name, parameter, start, stop in self._places()
        }

    @torch.no_grad()
    def step(self, *, rate: float, sparsity: float) -> None:
        """Move S by one step of Adam along the gradient in `.grad`, and theta_m with it."""
        self.steps += 1
        corrections = tuple(1 - beta**self.steps for beta in _BETAS)
        add_up_shares(self._gradient, self._ranks)
        theta, gradients = self._theta[self._own], self._gradient[self._own]
        for block in range(0, self._S.numel(), self._block):
            part = slice(block, block + self._block)
            advance(
                self._S[part], self._m[part], self._v[part], gradients[part],
                theta[part], self._theta_0[part], self._tau[part],
                self.headroom, sparsity, rate / corrections[0], corrections[1],
            )  # fmt: skip
        if self._ranks.count > 1:
            self._gradient.zero_()
        spread_shares(self._theta, self._ranks)

    @torch.no_grad()
    def _write_back(self) -> None:
        for block in range(0, self._S.numel(), self._block):
            self._write(slice(block, block + self._block))
        spread_shares(self._theta, self._ranks)

    def _write(self, part: slice) -> None:
        mask, tau = torch.sigmoid(self._S[part]), self._tau[part]
        self._theta[self._own][part] = masked(self._theta_0[part], tau, mask, self.headroom)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step, whatever the number of shares."""
        return {name: self._whole(value) for name, value in self._learned().items()}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; the weights follow."""
        self.steps = steps
        start, stop = self._own.start, self._own.start + self._owned
        for name, value in self._learned().items():
            value[: self._owned].copy_(state[name][start:stop])
        self._gradient.zero_()
        self._write_back()

    def _learned(self) -> dict[str, Tensor]:
        return {"S": self._S, "m": self._m, "v": self._v}

    def release(self) -> None:
        """Stop learning: drop the gradients."""
        for parameter in self._parameters:
            parameter.requires_grad_(False)
            parameter.grad = None

    def masked_share(self) -> float:
        """Share of parameters whose effective factor h sigma(S) is below one half."""
        least = 0.5 / self.headroom
        if least >= 1:
            return 1.0
        threshold = math.log(least / (1 - least))
        below = torch.count_nonzero(self._S[: self._owned].lt(threshold))
        return float(add_up(below, self._ranks)) / self._total
