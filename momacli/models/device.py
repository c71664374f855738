"""What torch computes on: the device of an encoder, and the threads of a processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from momacli.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch


def choose_device(device: str) -> "torch.device":
    """The torch device for auto, cpu or cuda. Raises UsageError if it is not there."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            "--device cuda: this machine has no usable CUDA device",
            hint="use --device cpu, or auto to take what there is",
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device}", hint="use auto, cpu or cuda") from error


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
