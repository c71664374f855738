"""A device that is only pretended: its tensors are computed on the processor.

What code does with devices can so be tested where there is no GPU: a tensor of the processor's
among those of the device is an error, as on a real one, and so is a result that nobody brought
back. It goes by the name of a kind of device that torch knows and nothing here has.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy", 0)
_PROCESSOR = torch.device("cpu")

_MIXING = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
}
"""What may move values between devices, or takes numbers of the processor's as an index."""


class OnDevice(Tensor):
    """Values of the processor's that say they are the device's."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )

    def __init__(self, values: Tensor):
        self.values_here = values

    def tolist(self) -> Any:  # which copies from a real device, too
        return self.values_here.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: outside of the pretended device")


class PretendedDevice(TorchDispatchMode):
    """While it is entered, computes what is asked of the device, and counts how much that was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        given = [one for one in tree_leaves((args, named)) if isinstance(one, Tensor)]
        there = [one for one in given if isinstance(one, OnDevice)]
        asked = named.get("device")
        device = torch.device(asked) if asked is not None else None
        if not there and (device is None or device.type != DEVICE.type):
            return func(*args, **named)
        strangers = [one for one in given if not isinstance(one, OnDevice) and one.ndim]
        if there and strangers and func not in _MIXING:
            raise RuntimeError(
                "expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and cpu, in {func}"
            )
        self.calls += 1
        if device is not None:
            named["device"] = _PROCESSOR
        found = func(*tree_map(_here, args), **tree_map(_here, named))
        if device is not None and device.type == "cpu":
            return found
        result = tree_map(lambda one: OnDevice(one) if isinstance(one, Tensor) else one, found)
        return return_and_correct_aliasing(func, args, named, result)


def _here(value: Any) -> Any:
    return value.values_here if isinstance(value, OnDevice) else value
