"""Concrete AdaMerging (Tang et al. 2023, arXiv:2312.06173): a mask first, then coefficients.

theta_m^l = theta_0^l + m^l * sum_t lambda_t^l tau_t^l. First the shared mask m is learned on two
levels: in each step the coefficients go back to their start and take one step of Adam under the
drawn mask; then, with these, the logits of the mask take one, on other samples. Then one mask is
kept, and the coefficients are learned as by `adamerging`.

The published code clamps no coefficient, draws the last mask at random and without a seed; here
`--seed` says which. The output cannot be made again without the data.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from momacli.adaptation.adamerging import start
from momacli.adaptation.coefficients import Coefficients
from momacli.adaptation.concrete import ConcreteMask, LastMask, whole
from momacli.adaptation.ensemble import Ensemble, Merged
from momacli.adaptation.fit import descend

ENCODERS, ENCODERS_PER_EXPERT = 8, 1
"""What is held, in sizes of the merged tensors in float32: as by `concrete-task-arithmetic`,
and tau_t."""


def concrete_adamerging(
    ensemble: Ensemble,
    *,
    per: Literal["layer", "task"] = "layer",
    lam: float = 0.3,
    base_rate: float = 1.0,
    mask_rate: float = 1e-3,
    mask_steps: int = 1000,
    rate: float = 1e-3,
    steps: int = 1000,
    batch_size: int = 16,
    temperature: float = 0.5,
    logits: float = 0.0,
    mask: Literal["sampled", "expected"] = "sampled",
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Merged:
    """Merge with a mask and coefficients that make the merged model sure.

    per: "layer" learns a coefficient for each tensor of each task, "task" one for each task.
    lam: every coefficient at the start; 0.3 is the paper's.
    base_rate: learning rate of the coefficients while the mask is learned; 1 is the published
        configurations'.
    mask_rate: learning rate of the mask; 1e-3 is the paper's.
    mask_steps: of the mask, each of two passes; 1000 is the published scripts'.
    rate: learning rate of the coefficients under the last mask; 1e-3 is the paper's.
    steps: of the coefficients under the last mask; 1000 is the published scripts'.
    batch_size: samples of each task a pass; 16 is the paper's.
    temperature: of the relaxed Bernoulli distributions; 0.5 is the paper's.
    logits: of all entries at the start; 0, a probability of one half, is the published scripts'.
    mask: the last one is "sampled", as in the published code, or "expected", the probabilities.
    precision: of the encoder's arithmetic in the steps, float32 or bfloat16; "auto" is bfloat16
        where the device is made for it.
    """
    coefficients = start(
        ensemble, ensemble.task_vectors, per=per, lam=lam, rate=base_rate, clamp=False
    )
    learned = MaskedCoefficients(
        ensemble, coefficients, mask_rate, rate, 2 * mask_steps, logits, temperature, mask
    )
    passes = 2 * mask_steps + steps
    descend(
        ensemble,
        learned,
        steps=passes,
        batch_size=batch_size,
        precision=precision,
        rate_option="mask-rate",
    )
    learned.place()
    return whole(ensemble, coefficients.leaves, lam)


class MaskedCoefficients:
    """The mask on sum_t lambda_t tau_t, and lambda. T + 8 vectors of the encoder's size."""

    def __init__(
        self,
        ensemble: Ensemble,
        coefficients: Coefficients,
        mask_rate: float,
        rate: float,
        passes: int,
        logits: float,
        temperature: float,
        last: LastMask,
    ):
        """passes: of the first part, in which two make a step of the mask."""
        self._ensemble, self._coefficients = ensemble, coefficients
        self.leaves = coefficients.leaves
        self._mask_rate, self._rate, self._last = mask_rate, rate, last
        self._first_part = passes
        self._sum = torch.empty_like(self.leaves.theta)  # sum_t lambda_t tau_t
        self._mask = ConcreteMask(
            self.leaves.slices,
            start=logits,
            temperature=temperature,
            device=self.leaves.theta.device,
        )
        self._taken = 0

    @torch.no_grad()
    def place(self) -> None:
        """Give the encoder theta_m, with another mask and coefficients where it is their turn."""
        if self._taken == self._first_part:
            self._coefficients.reset(rate=self._rate)
            self._mask.draw_last(self._last, self._ensemble.uniform("last mask"))
        elif self._taken < self._first_part and self._taken % 2 == 0:
            self._coefficients.reset()
            self._mask.draw(self._ensemble.uniform(f"mask {self._taken // 2}"))
        lam = self._coefficients.used
        for layer, part in enumerate(self.leaves.slices):
            torch.mv(self._coefficients.task_vectors[layer].mT, lam[:, layer], out=self._sum[part])
            theta_0, theta = self._coefficients.theta_0[part], self.leaves.theta[part]
            self._mask.masked(part, self._sum[part], plus=theta_0, out=theta)

    @property
    def _is_masks_turn(self) -> bool:
        """Whether this pass moves the mask, after the coefficients have moved once."""
        return self._taken < self._first_part and self._taken % 2 == 1

    @torch.no_grad()
    def take(self, layer: int, gradient: Tensor) -> bool:
        """Pull the encoder's gradient back to lambda, or let those of other tasks be added."""
        if self._is_masks_turn:
            return False
        self._mask.masked(self.leaves.slices[layer], gradient, out=gradient)
        return self._coefficients.take(layer, gradient)

    @torch.no_grad()
    def step(self) -> None:
        """Move the coefficients or the mask."""
        if self._is_masks_turn:
            for part, gradient in zip(self.leaves.slices, self.leaves.gradients(), strict=True):
                self._mask.step(part, gradient, self._sum[part], rate=self._mask_rate)
            self.leaves.drop_gradients()
        else:
            self._coefficients.step()
        self._taken += 1

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on after the present step."""
        taken = torch.tensor([self._taken])
        return {**self._mask.state(), **self._coefficients.state(), "taken": taken}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._taken = int(state["taken"])
        self._mask.restore(state)
        if self._taken > self._first_part:
            self._coefficients.reset(rate=self._rate)
        self._coefficients.restore(state)
