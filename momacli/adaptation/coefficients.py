"""One coefficient per task and layer: merged weights from them, and gradients back to them.

    theta_m^l = theta_0^l + sum_t lambda_t^l tau_t^l       (AdaMerging, Eq. 2 and 4)
    dL/dlambda_t^l = <dL/dtheta_m^l, tau_t^l>

A layer is a tensor, as in the authors' code. Task-wise, one lambda_t holds for all layers, and
its gradient is the sum of theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from momacli.adaptation.leaves import LOSS_SCALE, Leaves
from momacli.shapes import Float

Per = Literal["task", "layer"]


def merged(
    theta_0: Float[Tensor, " n"],
    task_vectors: Float[Tensor, "T n"],
    lam: Float[Tensor, " T"],
    *,
    out: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """Return theta_0 + sum_t lambda_t tau_t of one layer, in `out` where it is given."""
    return torch.addmv(theta_0, task_vectors.mT, lam, out=out)


def pull_back(
    gradient: Float[Tensor, " n"], task_vectors: Float[Tensor, "T n"]
) -> Float[Tensor, " T"]:
    """Return <g, tau_t> for each task, in one pass over the task vectors of one layer."""
    return task_vectors @ gradient


class Coefficients:
    """lambda, learned by Adam with the other coefficients' gradients in the same step.

    Of the encoder's size are T task vectors, theta_0 and theta_m.
    """

    def __init__(
        self,
        leaves: Leaves,
        theta_0: Callable[[str], Tensor],
        task_vectors: Callable[[str], Tensor],
        *,
        count: int,
        per: Per,
        start: float,
        rate: float,
        clamp: bool,
    ):
        """task_vectors: [T, *shape] by name; count: T; start: of every lambda."""
        self.leaves, self._clamp, self.start = leaves, clamp, start
        device = leaves.theta.device
        self.theta_0 = torch.cat([theta_0(name).reshape(-1) for name in leaves.names]).to(device)
        self.task_vectors = [
            task_vectors(name).reshape(count, -1).to(device) for name in leaves.names
        ]
        columns = 1 if per == "task" else len(leaves.names)
        self.lam = torch.full((count, columns), start, device=device)
        self.lam.grad = torch.zeros_like(self.lam)
        self._found = self.lam.new_zeros(count, len(leaves.names))  # dL/dlambda of tasks so far
        self._adam = torch.optim.Adam([self.lam], lr=rate)

    @property
    def used(self) -> Float[Tensor, "T layers"]:
        """The coefficients that the merge is made with, one column a layer."""
        lam = self.lam.clamp(0, 1) if self._clamp else self.lam
        return lam.expand(-1, len(self.leaves.names))

    def reset(self, *, rate: float | None = None) -> None:
        """Let all coefficients be what they were at the start.

        Adam goes on, unless another learning rate is given: then it begins anew.
        """
        self.lam.fill_(self.start)
        if rate is not None:
            self._adam = torch.optim.Adam([self.lam], lr=rate)

    @torch.no_grad()
    def place(self) -> None:
        """Give the encoder theta_m."""
        lam = self.used
        for layer, part in enumerate(self.leaves.slices):
            theta_0, taus = self.theta_0[part], self.task_vectors[layer]
            merged(theta_0, taus, lam[:, layer], out=self.leaves.theta[part])

    def take(self, layer: int, gradient: Float[Tensor, " n"]) -> bool:
        """Pull the encoder's gradient back to lambda."""
        self._found[:, layer] += pull_back(gradient, self.task_vectors[layer]) / LOSS_SCALE
        return True

    def step(self) -> None:
        """Move lambda by one step of Adam along what was gathered."""
        found, self._found = self._found, torch.zeros_like(self._found)
        self.move(found.unbind(dim=1))

    def move(self, gradients: Sequence[Float[Tensor, " T"]]) -> None:
        """Take a step of Adam along dL/dlambda, given of each layer.

        Where a coefficient is clamped, and would go on beyond, the gradient is zero.
        """
        each = torch.stack(list(gradients), dim=1)
        found = each.sum(dim=1, keepdim=True) if self.lam.shape[1] == 1 else each
        if self._clamp:
            found = found * ((self.lam >= 0) & (self.lam <= 1))
        assert self.lam.grad is not None
        self.lam.grad.copy_(found)
        self._adam.step()

    def table(self) -> dict[str, list[float]]:
        """The coefficients in use: by layer, one a task."""
        columns = self.used.mT.tolist()
        return dict(zip(self.leaves.names, columns, strict=True))

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step."""
        kept, zero = self._adam.state.get(self.lam, {}), torch.zeros_like(self.lam)
        taken = kept.get("step", torch.tensor(0.0)).reshape(1)
        moments = {name: kept.get(name, zero) for name in ("exp_avg", "exp_avg_sq")}
        return {"lam": self.lam, "lam_steps": taken, **moments}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.lam.copy_(state["lam"])
        moments = {name: state[name].to(self.lam) for name in ("exp_avg", "exp_avg_sq")}
        if float(state["lam_steps"]):
            self._adam.state[self.lam] = {"step": state["lam_steps"].reshape(()).cpu(), **moments}
