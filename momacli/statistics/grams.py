"""What linear layers take in, summed: the Gram matrices that regressions are solved from."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from momacli.adaptation.ensemble import Ensemble
from momacli.errors import DivergenceError
from momacli.models.interface import Batch
from momacli.shapes import Float

_RIDGE = 1e-6
"""Of the mean diagonal: more than the rounding of sums in float32, less than any real input."""


def linear_layers(ensemble: Ensemble) -> dict[str, nn.Linear]:
    """The linear layers of the network whose weights are merged, by the names of these."""
    names = {id(ensemble.network.parameters[name]): name for name in ensemble.learnable}
    return {
        names[id(module.weight)]: module
        for module in ensemble.network.module.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in names
    }


class LinearInputs:
    """X^T X of what linear layers take in, and how many tokens it is of.

    Layers that are called one after another with the same tensor are a group and share a matrix,
    under the name of the first. Positions that a batch's attention mask leaves out do not count.
    """

    def __init__(self) -> None:
        self.groups: dict[str, str] = {}  # layer -> the first of its group
        self._products: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = defaultdict(int)
        self._kept: Tensor | None = None  # [N, length], which positions count
        self._last: tuple[Tensor, str] | None = None

    def starts(self, batch: Batch) -> None:
        """Say what the next pass is of."""
        mask = batch.get("attention_mask")
        self._kept = None if mask is None else mask.bool()
        self._last = None

    def gram(self, key: str) -> Float[Tensor, "d d"]:
        """X^T X / tokens of a group."""
        return self._products[key] / max(1, self._tokens[key])

    def see(self, name: str, x: Tensor) -> None:
        """Take in the input of the layer of that name."""
        if self._last is None or self._last[0] is not x:
            self._last = x, name
            self._add(name, x)
        self.groups[name] = self._last[1]

    def _add(self, key: str, x: Tensor) -> None:
        kept = self._kept
        if kept is not None and x.ndim == 3 and x.shape[:2] == kept.shape:
            tokens = x.detach()[kept].float()
        else:
            tokens = x.detach().reshape(-1, x.shape[-1]).float()
        product = self._products.setdefault(key, tokens.new_zeros(x.shape[-1], x.shape[-1]))
        product.addmm_(tokens.mT, tokens)
        self._tokens[key] += len(tokens)


@contextmanager
def watching(layers: Mapping[str, nn.Linear]) -> Iterator[LinearInputs]:
    """Watch what layers, by the names of their weights, take in until the block ends."""
    inputs = LinearInputs()

    def watcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _layer, given: inputs.see(name, given[0])

    hooks = [layer.register_forward_pre_hook(watcher(name)) for name, layer in layers.items()]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def damped(gram: Float[Tensor, "d d"], alpha: float) -> Float[Tensor, "d d"]:
    """Return the matrix with its entries off the diagonal times alpha (RegMean, section 4)."""
    diagonal = gram.diagonal().clone()
    result = alpha * gram
    result.diagonal().copy_(diagonal)
    return result


class RegressionSums:
    """sum_t G_t of each group, and sum_t G_t W_t^T of each layer: all that a solution takes."""

    def __init__(self, alpha: float):
        self._alpha = alpha
        self._groups: dict[str, str] = {}
        self._grams: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}

    @property
    def layers(self) -> list[str]:
        """Names of the weights that can be solved for."""
        return list(self._products)

    def add(self, inputs: LinearInputs, weight: Callable[[str], Tensor]) -> None:
        """Take in a task: the inputs of its expert's layers, and these layers' weights W_t."""
        for name, key in inputs.groups.items():
            if key == name:
                gram = damped(inputs.gram(key), self._alpha)
                self._grams[key] = self._grams[key] + gram if key in self._grams else gram
            self._groups[name] = key
            product = gram @ weight(name).to(gram).mT
            self._products[name] = (
                self._products[name] + product if name in self._products else product
            )

    def solve(self, name: str, mean: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Return W of one layer, which is let go; mean: of the experts' weights."""
        gram = self._grams[self._groups[name]]
        weight = regression(gram, self._products.pop(name), mean.to(gram.device))
        if not bool(torch.isfinite(weight).all()):
            raise DivergenceError(
                f"the inputs of {name} are not finite",
                hint="look for broken samples in the folders of --data",
            )
        return weight.to(mean)


def regression(
    gram: Float[Tensor, "d d"], product: Float[Tensor, "d k"], mean: Float[Tensor, "k d"]
) -> Float[Tensor, "k d"]:
    """Solve gram W^T = product for W, nearest to the mean where the matrix leaves it open.

    Computed in float64, by Cholesky of gram + ridge, for what W differs from the mean; the ridge
    grows where rounding left the matrix with negative eigenvalues.
    """
    gram, product, start = gram.double(), product.double(), mean.double().mT
    size = float(gram.diagonal().mean())
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    ridge = _RIDGE * size if size > 0 else 1.0
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
    while bool(failed) and ridge < size:
        ridge *= 10
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
    return (start + torch.cholesky_solve(product - gram @ start, factor)).mT.to(mean.dtype)
