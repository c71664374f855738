"""Fisher merging (Matena and Raffel 2022, arXiv:2111.09832): a mean weighted by certainty.

theta_m = sum_t c_t F_t theta_t / sum_t c_t F_t, entry by entry, with the diagonal Fisher
information of each expert on unlabeled samples of its own task:
    F_t = E_x E_{y ~ p(y|x; theta_t)} [ (d log p(y|x; theta_t) / d theta)^2 ]

Gradients are squared sample by sample, as the formula has it. MergeLM and FusionBench square the
gradient of a batch and of all classes together, which depends on the size of the batch:
`--set labels=batch`. Tensors without a gradient, such as running statistics, are averaged. By
default 256 samples of each task are seen, as there; `--max-samples` says another number.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from momacli.adaptation.ensemble import Ensemble, Merged, Task
from momacli.errors import DivergenceError
from momacli.progress import Progress
from momacli.shapes import Float

SAMPLES = 256
"""Of each task, unless told otherwise."""

ENCODERS, ENCODERS_PER_EXPERT = 6, 0
"""What is held, in sizes of the merged tensors in float32, whatever the number of experts:
theta_t, its gradient, F_t, the two sums, and the result."""

Labels = Literal["sampled", "expected", "batch"]


def fisher(
    ensemble: Ensemble,
    *,
    weights: Float[Tensor, " T"] | None = None,
    labels: Literal["sampled", "expected", "batch"] = "sampled",
    floor: float = 1e-6,
    normalize: bool = False,
    batch_size: int = 32,
) -> Merged:
    """Return the mean of the experts, weighted by the Fisher information of each entry.

    weights: c_t, default 1 each.
    labels: "sampled" draws one answer for each sample from the expert's own; "expected" goes
        through all classes, which costs a backward pass for each; "batch" is the estimate of
        MergeLM and FusionBench.
    floor: is added to F, and more than 0; 1e-6 is the authors' and everybody's. It draws towards
        the average.
    normalize: divide c_t by |F_t|, as FusionBench does, so that no expert outweighs the others.
    batch_size: of `labels=batch` alone; 32 is FusionBench's.
    """
    estimate = _estimate(labels, batch_size)
    numerator = {name: torch.zeros_like(ensemble.base(name)) for name in ensemble.tensors}
    denominator = {name: torch.zeros_like(value) for name, value in numerator.items()}
    for t, task in enumerate(ensemble.tasks):
        ensemble.load_expert(t)
        F = {name: value.cpu().add_(floor) for name, value in estimate(ensemble, task).items()}
        _check(F, task)
        own = 1.0 if weights is None else float(weights[t])
        c = own / _norm(F) if normalize else own
        for name in ensemble.tensors:
            tau = ensemble.expert(t, name) - ensemble.base(name)
            weight = c * F.pop(name) if name in F else torch.full_like(tau, own)
            numerator[name].addcmul_(weight, tau)
            denominator[name].add_(weight)
    return {
        name: ensemble.base(name) + numerator.pop(name) / denominator.pop(name)
        for name in ensemble.tensors
    }


Information = dict[str, Tensor]
"""F_t by tensor name, in each tensor's shape, on the network's device."""


def _estimate(labels: Labels, batch_size: int) -> Callable[[Ensemble, Task], Information]:
    if labels == "batch":
        return lambda ensemble, task: of_batches(ensemble, task, batch_size)
    return of_sampled_labels if labels == "sampled" else of_all_labels


def of_sampled_labels(ensemble: Ensemble, task: Task) -> Information:
    """E_x (d log p(y|x))^2 with one y ~ p(y|x) for each sample."""
    generator = ensemble.generator(f"labels of {task.name}")
    total = _zeros(ensemble)
    for log_p in _answers(ensemble, task, 1):
        y = int(torch.multinomial(log_p[0].detach().exp(), 1, generator=generator))
        _add_square(total, ensemble, log_p[0, y], 1 / task.count)
    return total


def of_all_labels(ensemble: Ensemble, task: Task) -> Information:
    """E_x sum_y p(y|x) (d log p(y|x))^2."""
    total = _zeros(ensemble)
    for log_p in _answers(ensemble, task, 1):
        shares = log_p[0].detach().exp().tolist()
        for y, share in enumerate(shares):
            more = y + 1 < len(shares)
            _add_square(total, ensemble, log_p[0, y], share / task.count, more=more)
    return total


def of_batches(ensemble: Ensemble, task: Task, size: int) -> Information:
    """(d sum_x sum_y sqrt(p(y|x)) log p(y|x))^2 / N, the root a constant, summed over batches."""
    total = _zeros(ensemble)
    for log_p in _answers(ensemble, task, size):
        _add_square(total, ensemble, (log_p.detach().div(2).exp() * log_p).sum(), 1 / task.count)
    return total


def _zeros(ensemble: Ensemble) -> Information:
    places = ensemble.network.parameters
    return {name: torch.zeros_like(places[name]) for name in ensemble.learnable}


def _answers(ensemble: Ensemble, task: Task, size: int) -> Iterator[Float[Tensor, "n C"]]:
    """Log-probabilities of `size` samples at a time, differentiable in the parameters."""
    places = [ensemble.network.parameters[name] for name in ensemble.learnable]
    done = 0
    for place in places:
        place.requires_grad_(True)
    try:
        for batch in ensemble.batches(task, size):
            log_p = task.head(ensemble.network.features(batch).float()).log_softmax(dim=-1)
            yield log_p
            done += len(log_p)
            stage = f"Fisher information of {task.name}"
            ensemble.listener(Progress(stage, done, task.count, "samples"))
    finally:
        for place in places:
            place.requires_grad_(False)


def _add_square(
    total: Information,
    ensemble: Ensemble,
    value: Float[Tensor, ""],
    weight: float,
    *,
    more: bool = False,
) -> None:
    """Add weight * (d value / d theta)^2. more: whether the same graph is needed again."""
    places = [ensemble.network.parameters[name] for name in total]
    gradients = torch.autograd.grad(value, places, retain_graph=more, allow_unused=True)
    for F, gradient in zip(total.values(), gradients, strict=True):
        if gradient is not None:
            F.addcmul_(gradient, gradient, value=weight)


def _norm(F: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in F.values()))


def _check(F: Mapping[str, Tensor], task: Task) -> None:
    broken = [name for name, value in F.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise DivergenceError(
            f"the Fisher information of {task.name} is not finite",
            details=broken[:5],
            hint="look for broken samples in that task's folder",
        )
