"""What an encoder's arithmetic is done in: float32, or bfloat16.

Processors with tiles for bfloat16 (Intel's AMX) multiply matrices three times as fast with them
(290 against 95 GFLOPS a core, forward and backward through linear layers). Two things are
slower so: attention, which stays in float32 there (50 tokens: 147 ms against 49 ms), and the
convolution that cuts an image into patches (of 32 pixels: 1509 ms against 302 ms), which is done
as one product.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from momacli.shapes import Float

LEAST_PARAMETERS = 1_000_000
"""Below so many, what a processor saves on products is spent on conversions: with 0.1 million
parameters a step takes 1.1 times as long in bfloat16, with 2.7 million half as long."""


def choose_precision(precision: str, device: torch.device, parameters: int) -> str:
    """Return what "auto" means for an encoder: bfloat16 where the device is made for it.

    That is a GPU that has it, or a processor with AMX and at least `LEAST_PARAMETERS`.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = parameters >= LEAST_PARAMETERS and _has_tiles()
    return "bfloat16" if fast else "float32"


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let modules compute in "float32" or "bfloat16"; parameters and their gradients stay."""
    if precision != "bfloat16":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16):
        if device.type == "cpu":
            with _FastInHalves():
                yield
        else:
            yield


def _has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16."""
    capabilities: Callable[[], Mapping[str, Any]] | None
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in all of torch's versions
    return capabilities is not None and bool(capabilities().get("amx_bf16"))


class _FastInHalves(TorchFunctionMode):
    """Does what a processor takes long for in bfloat16 in another way."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch's."""
        named = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            with torch.autocast("cpu", enabled=False):
                return function(*map(_widened, args), **{k: _widened(v) for k, v in named.items()})
        if function in (torch.conv2d, functional.conv2d) and _cuts_patches(args):
            return _products_of_patches(*args[:3])
        return function(*args, **named)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    return value


def _cuts_patches(arguments: tuple[Any, ...]) -> bool:
    """Whether a convolution's windows lie side by side, from what nn.Conv2d calls it with."""
    if len(arguments) != 7:
        return False
    _, weight, _, stride, padding, dilation, groups = arguments
    whole = tuple(padding) == (0, 0) and tuple(dilation) == (1, 1) and groups == 1
    return whole and tuple(weight.shape[2:]) == tuple(stride)


def _products_of_patches(
    images: Float[Tensor, "n c H W"], weight: Float[Tensor, "k c h w"], bias: Tensor | None
) -> Float[Tensor, "n k rows columns"]:
    """The convolution of windows that lie side by side, as one product of matrices."""
    h, w = weight.shape[2:]
    rows, columns = images.shape[2] // h, images.shape[3] // w
    patches = images[..., : rows * h, : columns * w].unflatten(3, (columns, w))
    patches = patches.unflatten(2, (rows, h)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return functional.linear(patches, weight.flatten(1), bias).permute(0, 3, 1, 2)
