"""The base's values and the task vectors of one tensor, read a block at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import MERGEABLE_DTYPES
from momacli.checkpoint.plan import Expert, MergePlan
from momacli.checkpoint.reader import iterate_blocks
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 20
"""Elements of one tensor held at a time, for the base and for each expert."""


@dataclass(frozen=True)
class Block:
    """A stretch of n values of one tensor, in float32, or float64 where the base has that."""

    theta_0: "Tensor"  # [n]
    taus: "Tensor"  # [T, n]
    theta_1: "Tensor | None"  # [n], the expert itself where there is exactly one


def read_blocks(plan: MergePlan, spec: TensorSpec, *, size: int = BLOCK) -> Iterator[Block]:
    """Read one tensor to be merged, in blocks of at most `size` elements.

    Raises ConflictError, naming the model and the tensor, where a value is not finite.
    """
    for start, stop in iterate_blocks(spec.elements, size):
        yield _read_block(plan, spec.name, start, stop)


def bytes_to_read(plan: MergePlan) -> dict[str, int]:
    """Bytes of each tensor to be merged, in the base and all experts together."""
    checkpoints = [plan.base, *(expert.checkpoint for expert in plan.experts)]
    tables = [checkpoint.entries for checkpoint in checkpoints]
    return {spec.name: sum(table[spec.name].nbytes for table in tables) for spec in plan.merged}


def rounded(values: "Tensor", spec: TensorSpec) -> "Tensor":
    """Round once, to the type written. Raises ConflictError where that cannot hold a value."""
    import torch

    from momacli.checkpoint.dtypes import torch_dtype

    result = values.to(torch_dtype(spec.dtype, spec.name))
    if not bool(torch.isfinite(result).all()):
        raise ConflictError(
            f"tensor {shown(spec.name)} of the result has values beyond {spec.dtype}",
            hint="try a smaller --lambda, --weights that do not cancel, or another --dtype",
        )
    return result


def read_head(expert: Expert, key: str) -> "Tensor":
    """Read a head tensor, to be carried along. Raises ConflictError where it is not finite."""
    import torch

    values = expert.checkpoint.read(key)
    floating = expert.checkpoint.entries[key].dtype in MERGEABLE_DTYPES
    if floating and not bool(torch.isfinite(values).all()):
        raise ConflictError(
            f"head tensor {shown(key)} of {expert.checkpoint.path} holds NaN or infinity",
            hint="the model is broken; leave it out",
        )
    return values


def _read_block(plan: MergePlan, key: str, start: int, stop: int) -> Block:
    import torch

    stored = plan.base.read_range(key, start, stop)
    theta_0 = stored if stored.dtype == torch.float64 else stored.float()
    taus = torch.empty(len(plan.experts), stop - start, dtype=theta_0.dtype)
    theta_1 = None
    for t, expert in enumerate(plan.experts):
        values = expert.checkpoint.read_range(key, start, stop)
        if expert.is_task_vector:
            taus[t] = values
        else:
            torch.sub(values, theta_0, out=taus[t])
            if len(taus) == 1:
                theta_1 = values.to(theta_0.dtype)
    _check_finite(plan, key, theta_0, taus)
    return Block(theta_0, taus, theta_1)


def _check_finite(plan: MergePlan, key: str, theta_0: "Tensor", taus: "Tensor") -> None:
    import torch

    if bool(torch.isfinite(theta_0.sum() + taus.sum())):
        return  # no NaN or infinity can hide in a finite sum
    names = [f"{plan.base.path} (the base)", *(str(item.checkpoint.path) for item in plan.experts)]
    broken = [
        name
        for name, values in zip(names, [theta_0, *taus], strict=True)
        if not bool(torch.isfinite(values).all())
    ]
    if not bool(torch.isfinite(theta_0).all()):
        broken = names[:1]  # then the differences from it say nothing of the experts
    if broken:
        raise ConflictError(
            f"tensor {shown(key)} holds NaN or infinity",
            details=broken,
            hint="the model is broken; leave it out, or take this tensor from the base "
            "with --exclude",
        )
