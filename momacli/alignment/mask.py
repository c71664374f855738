"""The mask on the multi-task vector: merged weights from S, and gradients back to S.

    theta_m = theta_0 + h sigma(S) * tau            (MOMA Eq. 10; h = 1 there)
    dL/dS   = h sigma(S) (1 - sigma(S)) * tau * dL/dtheta_m

theta_m is a leaf: no autograd graph runs through the merge, so memory does not grow with the
number of tasks. All tensors are views into flat vectors, updated in blocks that stay in cache.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

_BLOCK = 1 << 18
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


class MaskedEncoder:
    """An encoder's parameters held as theta_0, tau and S, with Adam's two moments of S.

    Seven vectors of the encoder's size in all: these five, theta_m, and its gradient.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        read_base: Callable[[str], Tensor],
        *,
        headroom: float,
        start: float,
    ):
        """Take over the parameters, which now hold the merged model's values."""
        self.headroom = headroom
        self._start = start
        self._names = list(parameters)
        self._parameters = [parameters[name] for name in self._names]
        sizes = [parameter.numel() for parameter in self._parameters]
        self._offsets = [0]
        for size in sizes:
            self._offsets.append(self._offsets[-1] + size)
        total, device = self._offsets[-1], self._parameters[0].device
        self._theta_0 = torch.empty(total, device=device)
        self._tau = torch.empty(total, device=device)
        self._theta = torch.empty(total, device=device)
        self._gradient = torch.zeros(total, device=device)
        for name, parameter, view, base, tau in zip(
            self._names,
            self._parameters,
            self._views(self._theta),
            self._views(self._theta_0),
            self._views(self._tau),
            strict=True,
        ):
            base.copy_(read_base(name).reshape(-1))
            view.copy_(parameter.detach().reshape(-1))
            torch.sub(view, base, out=tau)
            parameter.data = view.view(parameter.shape)
        for parameter, gradient in zip(self._parameters, self._views(self._gradient), strict=True):
            parameter.requires_grad_(True)
            parameter.grad = gradient.view(parameter.shape)
        self._S, self._m, self._v = (torch.empty(total, device=device) for _ in range(3))
        self.restart()

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        for start, stop in zip(self._offsets, self._offsets[1:], strict=False):
            yield flat[start:stop]

    def restart(self) -> None:
        """Go back to the start, before any step."""
        self.steps = 0
        self._S.fill_(self._start)
        for vector in (self._m, self._v, self._gradient):
            vector.zero_()
        self._write_back()

    def masks(self) -> dict[str, Tensor]:
        """M = sigma(S), by tensor name, in each tensor's shape."""
        views = zip(self._names, self._parameters, self._views(self._S), strict=True)
        return {name: torch.sigmoid(s).view(p.shape).cpu() for name, p, s in views}

    @torch.no_grad()
    def step(self, *, rate: float, sparsity: float) -> None:
        """Move S by one step of Adam along the gradient in `.grad`, and theta_m with it."""
        self.steps += 1
        beta_1, beta_2 = _BETAS
        correction_1, correction_2 = 1 - beta_1**self.steps, 1 - beta_2**self.steps
        for block in range(0, self._S.numel(), _BLOCK):
            part = slice(block, block + _BLOCK)
            S, tau, g = self._S[part], self._tau[part], self._gradient[part]
            m, v = self._m[part], self._v[part]
            gradient = pull_back(g, tau, torch.sigmoid(S), self.headroom, sparsity)
            m.lerp_(gradient, 1 - beta_1)
            v.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
            scale = (v / correction_2).sqrt_().add_(_EPSILON)
            S.addcdiv_(m, scale, value=-rate / correction_1)
            g.zero_()
            mask = torch.sigmoid(S)
            self._theta[part] = masked(self._theta_0[part], tau, mask, self.headroom)

    @torch.no_grad()
    def _write_back(self) -> None:
        for block in range(0, self._S.numel(), _BLOCK):
            part = slice(block, block + _BLOCK)
            mask = torch.sigmoid(self._S[part])
            self._theta[part] = masked(self._theta_0[part], self._tau[part], mask, self.headroom)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step."""
        return {"S": self._S, "m": self._m, "v": self._v}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; the weights follow."""
        self.steps = steps
        for name, value in self.state().items():
            value.copy_(state[name])
        self._gradient.zero_()
        self._write_back()

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
        return float(torch.count_nonzero(self._S.lt(threshold))) / self._S.numel()
