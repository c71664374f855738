"""What torch computes on: the device of an encoder, its memory, and a processor's threads."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

from momacli.errors import ModelError, OutOfMemoryError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]
"""What an encoder computes in; see `models.precision`."""


def choose_device(device: str) -> "torch.device":
    """The torch device for auto, cpu or cuda. Raises UsageError if it is not there."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            "--device cuda: this machine has no usable CUDA device",
            hint="use --device cpu, or auto to take what there is",
        )
    if device == "cuda" and (own := os.environ.get("LOCAL_RANK")) is not None:
        device = f"cuda:{own}"  # torchrun starts a process for each
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device}", hint="use auto, cpu or cuda") from error


def check_precision(precision: str) -> None:
    """Raise UsageError for what is no precision."""
    known = get_args(Precision)
    if precision not in known:
        raise UsageError(f"precision: expected {' or '.join(known)}, found {precision}")


def moved(value: "Tensor", device: "torch.device") -> "Tensor":
    """Return a tensor of the processor's on a device; a GPU need not be waited for."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone.

    Sums then come out the same anywhere, and small work is done sooner: waiting for other
    threads costs more, several times more where the cores are shared.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def needing_memory(message: str, *, hint: str) -> Iterator[None]:
    """Raise OutOfMemoryError with this message where torch, or Python, gets no memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        raise OutOfMemoryError(message, hint=hint) from None


def _is_shortage(error: Exception) -> bool:
    """Whether memory was short; on a processor torch says so in a plain RuntimeError."""
    import torch

    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def peak_gpu_memory() -> int | None:
    """Bytes that torch had allocated at most on a GPU; None where this process used none."""
    torch = sys.modules.get("torch")  # a process without it has used no GPU
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return max(int(torch.cuda.max_memory_allocated(device)) for device in devices) or None


def release_memory() -> None:
    """Give back what nobody holds any more, after work that did not fit."""
    import torch

    if torch.cuda.is_available():
        gc.collect()  # frames of a failed step hold its tensors until then
        torch.cuda.empty_cache()
