"""What an alignment could be made of instead, on the tasks of `moma demo` or of a suite.

    element           a mask entry per parameter: the default
    row, tensor       one mask entry for each row of a matrix, or for each tensor
    cayley, exp       A_t = R(S) A_0 with skew S learned by Adam, R(S) = (I - S/2)^-1 (I + S/2)
                      or e^S, instead of the closed form
    bfloat16          the encoder's arithmetic of the steps in half precision
    logits, features  one part of the objective instead of both
    squared           both, with the squares of the distances of features
    no prior          rotations of what the samples show alone
    alike             rotations that are fitted to all of the features alike
    similarity, scaling, linear   other transforms in closed form
    binary            the mask's entries become 0 below half of what they begin at, and else one
                      number, the mean of the others, before the last transforms are found
    rate 0.03, 0.3    of Adam for the mask, where the default is the paper's 0.1
    falling           a rate that falls to 0 as a cosine does
    merged            S such that the steps begin at the merged model, where the default begins at 0
    headroom /2, x2   half or twice as much as the default
    no sparsity       without the paper's weight of 5e-9 on the mask's squares
    orthogonal        the default's transforms, without a mask
    unpriored         these without the prior
    paper             the paper's recipe

With fewer samples of each task than there are it learns from these, and with --start merged or a
number all but the paper's recipe begin there.
Prints the objective on the unlabeled samples, summed over tasks, the accuracy on others, and
processor seconds of the whole command.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from momacli.align import align
from momacli.alignment.headroom import find_headroom
from momacli.alignment.mask import MaskedEncoder
from momacli.alignment.objectives import logit_divergence
from momacli.alignment.settings import Settings, Transform, paper
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.evaluate import evaluate
from momacli.features.families import FAMILIES, Moments
from momacli.models.interface import Head

FURTHER: tuple[Transform, ...] = ("similarity", "scaling", "linear")
"""Families of transforms beside the default."""


class GroupedMask(MaskedEncoder):
    """A mask whose entries are one for each group: all have the gradient of their sum."""

    by_row: bool

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        read_base: Callable[[str], Tensor],
        **keywords: Any,
    ):
        self._members = [
            (one, one.detach() - read_base(name).view_as(one)) for name, one in parameters.items()
        ]
        super().__init__(parameters, read_base, **keywords)

    @torch.no_grad()
    def step(self, *, rate: float, sparsity: float) -> None:
        for parameter, tau in self._members:
            assert parameter.grad is not None
            product = (tau * parameter.grad).reshape(len(parameter), -1)
            if parameter.ndim < 2 and self.by_row:
                continue  # a vector's rows are its entries
            summed = product.sum(1, keepdim=True) if self.by_row else product.sum()
            shared = summed.expand_as(product).reshape(parameter.shape) / tau
            parameter.grad.copy_(torch.where(tau == 0, 0.0, shared))
        super().step(rate=rate, sparsity=sparsity)


class RowMask(GroupedMask):
    by_row = True


class TensorMask(GroupedMask):
    by_row = False


class BinaryMask(MaskedEncoder):
    """A mask of two values from where its steps end."""

    @torch.no_grad()
    def release(self) -> None:
        entries = torch.sigmoid(self._S)
        kept = entries >= torch.sigmoid(torch.tensor(self._start)) / 2
        self._S.copy_(torch.where(kept, torch.logit(entries[kept].mean()), _NOTHING))
        self._write_back()
        super().release()


_NOTHING = -30.0  # an S whose sigmoid is next to 0


def falling(steps: int) -> type[MaskedEncoder]:
    """A mask whose rate falls to 0 in so many steps."""

    class Falling(MaskedEncoder):
        def step(self, *, rate: float, sparsity: float) -> None:
            share = (1 + math.cos(math.pi * self.steps / steps)) / 2
            super().step(rate=share * rate, sparsity=sparsity)

    return Falling


def squared(aligned: Tensor, finetuned: Tensor, head: Head) -> Tensor:
    """KL of answers + E|A z_m - z_t|^2 / E|z_t|^2."""
    far = (aligned - finetuned).square().sum() / finetuned.square().sum().clamp(min=1e-12)
    return logit_divergence(aligned, finetuned, head) + far


class Rotated:
    """The closed form at the start, then turned by a rotation that Adam learns."""

    def __init__(self, start: Moments, rotation: Callable[[Tensor], Tensor], rate: float = 1e-2):
        self._start, self._rotation = FAMILIES["orthogonal"](start).float(), rotation
        self._free = torch.zeros_like(self._start, requires_grad=True)
        self._adam = torch.optim.Adam([self._free], lr=rate)

    @property
    def matrices(self) -> Tensor:
        return self._rotation((self._free - self._free.mT) / 2) @ self._start

    def penalty(self) -> Tensor:
        return torch.zeros(())

    def observe(self, _merged: Sequence[Tensor], _finetuned: Sequence[Tensor], /) -> None:
        self._adam.step()
        self._adam.zero_grad()

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, steps: int, state: Mapping[str, Tensor]) -> None:
        raise ValueError("a benchmark's run is not taken up again")


def cayley(S: Tensor) -> Tensor:
    eye = torch.eye(S.shape[-1])
    return torch.linalg.solve(eye - S / 2, eye + S / 2)


def _learned(rotation: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
    return patch("momacli.alignment.fit._transforms", lambda _, full: Rotated(full, rotation))


def _roomier(factor: float) -> AbstractContextManager[Any]:
    return patch("momacli.alignment.moma.find_headroom", lambda *of: factor * find_headroom(*of))


def _masked_by(kind: type[MaskedEncoder]) -> AbstractContextManager[Any]:
    return patch("momacli.alignment.fit.MaskedEncoder", kind)


def choices(plain: Settings) -> dict[str, tuple[Settings, AbstractContextManager[Any]]]:
    """Settings by name, and what is to be in force while they are used.

    plain: the default but for what is said of all, and of each image one view.
    """
    return {
        "element": (plain, nullcontext()),
        "row": (plain, _masked_by(RowMask)),
        "tensor": (plain, _masked_by(TensorMask)),
        "cayley": (plain, _learned(cayley)),
        "exp": (plain, _learned(torch.linalg.matrix_exp)),
        "views": (replace(plain, views="auto"), nullcontext()),
        "bfloat16": (replace(plain, precision="bfloat16"), nullcontext()),
        "logits": (replace(plain, objective="logits"), nullcontext()),
        "features": (replace(plain, objective="features"), nullcontext()),
        "squared": (plain, patch("momacli.alignment.fit.objective_called", lambda _: squared)),
        "binary": (plain, _masked_by(BinaryMask)),
        "rate 0.03": (replace(plain, mask_rate=0.03), nullcontext()),
        "rate 0.3": (replace(plain, mask_rate=0.3), nullcontext()),
        "falling": (plain, _masked_by(falling(plain.steps))),
        "merged": (replace(plain, start="merged"), nullcontext()),
        "headroom /2": (plain, _roomier(0.5)),
        "headroom x2": (plain, _roomier(2.0)),
        "no sparsity": (replace(plain, sparsity=0.0), nullcontext()),
        "no prior": (replace(plain, prior=0.0), nullcontext()),
        "alike": (plain, patch("momacli.alignment.fit._seen", lambda *_: [])),
        **{family: (replace(plain, transform=family), nullcontext()) for family in FURTHER},
        "orthogonal": (replace(plain, mask="none"), nullcontext()),
        "unpriored": (replace(plain, mask="none", prior=0.0), nullcontext()),
        "paper": (paper(plain), nullcontext()),
    }


@dataclass(frozen=True)
class Place:
    """What is aligned, on what, and what is evaluated."""

    merged: Path
    unlabeled: Path
    labeled: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("--demo", type=Path, required=True, help="the folder of `moma demo`")
    parser.add_argument("--only", nargs="+", help="some of the choices, by name")
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--samples", type=int, help="of each task; default all there are")
    add_start(parser)


def add_start(parser: argparse.ArgumentParser) -> None:
    """Add where masks begin."""
    default, text = Settings().start, "S where masks begin, or merged, with --choices"
    parser.add_argument("--start", type=start_of, default=default, help=text)


def start_of(text: str) -> float | Literal["merged"]:
    """A start as the command line says it."""
    try:
        return "merged" if text == "merged" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected merged or a number, found {text}") from None


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each choice, on the tasks of `moma demo`."""
    demo: Path = arguments.demo
    place = Place(demo / "merged", demo / "unlabeled", demo / "labeled")
    plain = Settings(steps=arguments.steps, start=arguments.start, views=1)
    measure(place, plain, arguments.only, arguments.samples)


def measure(place: Place, plain: Settings, only: Sequence[str] | None, samples: int | None) -> None:
    """Print a line for each choice.

    only: some of them, by name.
    samples: of each task; all there are if None.
    """
    print(f"{'':12} {'objective':>9} {'accuracy':>8} {'CPU s':>7}")
    for name, (settings, in_force) in choices(plain).items():
        if name not in (only or [name]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            output, began = Path(folder) / "aligned", time.process_time()
            keywords = {"data": place.unlabeled, "settings": settings, "device": "cpu"}
            keywords |= {"reading": Reading(Sampling(samples))}
            with in_force:
                report = align(place.merged, output=output, checkpoint_every=0, **keywords)
            seconds = time.process_time() - began
            accuracy = evaluate([output], data=place.labeled).average(str(output))
        objective = sum(one.objective_after for one in report.tasks.values())
        print(f"{name:12} {objective:9.4f} {100 * accuracy:8.1f} {seconds:7.1f}", flush=True)
