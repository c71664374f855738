"""RegMean (Jin et al. 2023, arXiv:2212.09849): linear layers that agree with every expert's.

W = argmin sum_t |X_t W^T - X_t W_t^T|^2, in closed form, for the inputs X_t [tokens, d] that a
linear layer has in expert t on unlabeled samples of task t:
    G_t = X_t^T X_t / tokens, entries off its diagonal times alpha
    W^T = (sum_t G_t)^-1 sum_t G_t W_t^T

All other tensors are averaged. Two sums a layer are kept, whatever T, and layers with the same
input, as queries, keys and values, share the first. Padding is no token. The equation is solved
for what W differs from the average, with a ridge of 1e-6 of the mean diagonal: directions that no
sample has, where the published code fails or makes noise, are averaged. By default 256 samples of
each task are seen, as FusionBench does; `--max-samples` says another number. Layers whose inputs
cannot be watched, as the projections within open_clip's attention, are averaged too.
"""

from functools import partial

import torch

from momacli.adaptation.ensemble import Ensemble, Merged
from momacli.progress import Progress
from momacli.statistics.grams import RegressionSums, linear_layers, watching

SAMPLES = 256
"""Of each task, unless told otherwise."""

ENCODERS, ENCODERS_PER_EXPERT = 6, 0
"""What is held, in sizes of the merged tensors in float32, whatever the number of experts:
theta_t, the result, sum G_t W_t^T, sum G_t and G_t; these are half as large again."""


def regmean(ensemble: Ensemble, *, alpha: float = 0.9, batch_size: int = 32) -> Merged:
    """Return the average of the experts, but for linear layers, which fit all experts' outputs.

    alpha: factor on the Gram matrices off their diagonals; 0.9 is the paper's for most models,
        0.1 for T5; FusionBench takes 0.95 for CLIP.
    batch_size: samples that are passed at once; it changes nothing but memory.
    """
    layers = linear_layers(ensemble)
    sums = RegressionSums(alpha)
    for t, task in enumerate(ensemble.tasks):
        ensemble.load_expert(t)
        done = 0
        with watching(layers) as inputs, torch.no_grad():
            for batch in ensemble.batches(task, batch_size):
                inputs.starts(batch)
                done += len(ensemble.network.features(batch))
                stage = f"inputs of the layers of {task.name}"
                ensemble.listener(Progress(stage, done, task.count, "samples"))
        sums.add(inputs, partial(ensemble.expert, t))
    solvable = set(sums.layers)
    means = ((name, ensemble.mean(name)) for name in ensemble.tensors)
    return {name: sums.solve(name, mean) if name in solvable else mean for name, mean in means}
