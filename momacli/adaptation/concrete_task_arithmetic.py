"""Concrete task arithmetic (Tang et al. 2023, arXiv:2312.06173): a shared mask of least entropy.

theta_m = theta_0 + lambda m * sum_t tau_t, where the mask m is drawn anew in each step from
relaxed Bernoulli distributions, whose logits lower the entropy of the merged model's answers,
summed over all tasks, by Adam on unlabeled samples.

The published code ends with one random mask and no seed; here `--seed` says which. The mask is
as large as the model and is not recorded: the output cannot be made again without the data.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from momacli.adaptation.concrete import ConcreteMask, LastMask, whole
from momacli.adaptation.ensemble import Ensemble, Merged
from momacli.adaptation.fit import descend
from momacli.adaptation.leaves import Leaves

ENCODERS, ENCODERS_PER_EXPERT = 8, 0
"""What is held, in sizes of the merged tensors in float32, whatever the number of experts:
theta_0, tau, theta_m, its gradient, the mask, its logits and Adam's moments of these."""


def concrete_task_arithmetic(
    ensemble: Ensemble,
    *,
    lam: float = 0.3,
    rate: float = 1e-3,
    steps: int = 2000,
    batch_size: int = 16,
    temperature: float = 0.5,
    logits: float = 0.0,
    mask: Literal["sampled", "expected"] = "sampled",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Merged:
    """Merge with a mask on the multi-task vector that makes the merged model sure.

    lam: factor on the masked sum of the task vectors; 0.3 is the paper's.
    rate: learning rate of Adam for the mask; 1e-3 is the paper's.
    steps: 2000 is the paper's.
    batch_size: samples of each task a step; 16 is the paper's.
    temperature: of the relaxed Bernoulli distributions; 0.5 is the paper's.
    logits: of all entries at the start; 0, a probability of one half, is the published scripts'.
    mask: the last one is "sampled", as in the published code, or "expected", the probabilities.
    precision: of the encoder's arithmetic in the steps, float32 or bfloat16; "auto" is bfloat16
        where the device is made for it.
    """
    leaves = Leaves({name: ensemble.network.parameters[name] for name in ensemble.learnable})
    learned = MaskedSum(ensemble, leaves, lam, rate, logits, temperature)
    descend(ensemble, learned, steps=steps, batch_size=batch_size, precision=precision)
    learned.place_last(mask)
    return whole(ensemble, leaves, lam)


class MaskedSum:
    """The mask on lambda sum_t tau_t. In all eight vectors of the encoder's size, for any T."""

    def __init__(
        self,
        ensemble: Ensemble,
        leaves: Leaves,
        lam: float,
        rate: float,
        logits: float,
        temperature: float,
    ):
        self._ensemble, self.leaves, self._rate = ensemble, leaves, rate
        device = leaves.theta.device
        others = [name for name in ensemble.tensors if name in ensemble.network.buffers]
        ensemble.load(lambda name: ensemble.task_arithmetic(name, lam), others)
        self._theta_0, self._tau = torch.empty_like(leaves.theta), torch.empty_like(leaves.theta)
        for name, part in zip(leaves.names, leaves.slices, strict=True):
            self._theta_0[part] = ensemble.base(name).reshape(-1).to(device)
            self._tau[part] = lam * ensemble.task_vectors(name).sum(dim=0).reshape(-1).to(device)
        self._mask = ConcreteMask(
            leaves.slices, start=logits, temperature=temperature, device=device
        )
        self._taken = 0

    def place(self) -> None:
        """Draw a mask, and give the encoder theta_m."""
        self._mask.draw(self._ensemble.uniform(f"mask {self._taken}"))
        self._place()

    def place_last(self, mask: LastMask) -> None:
        """Give the encoder theta_m with the mask that stays."""
        self._mask.draw_last(mask, self._ensemble.uniform("last mask"))
        self._place()

    @torch.no_grad()
    def _place(self) -> None:
        """Give the encoder theta_0 + m * lambda sum_t tau_t with the present mask."""
        for part in self.leaves.slices:
            theta_0, theta = self._theta_0[part], self.leaves.theta[part]
            self._mask.masked(part, self._tau[part], plus=theta_0, out=theta)

    def take(self, layer: int, gradient: Tensor) -> bool:
        """Let the gradients of other tasks be added."""
        del layer, gradient
        return False

    @torch.no_grad()
    def step(self) -> None:
        """Move the logits by one step of Adam along the encoder's gradient."""
        for part, gradient in zip(self.leaves.slices, self.leaves.gradients(), strict=True):
            self._mask.step(part, gradient, self._tau[part], rate=self._rate)
        self.leaves.drop_gradients()
        self._taken += 1

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step."""
        return {**self._mask.state(), "taken": torch.tensor([self._taken])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._mask.restore(state)
        self._taken = int(state["taken"])
