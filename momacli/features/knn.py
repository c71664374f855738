"""Classes by the distance to a few labeled samples of each (MOMA Eq. 6).

    d_c(x) = 1/K sum_i |g(x) - g(x_i^c)|_2      y = argmin_c d_c(x)
The mean is over all K samples of a class, not over the nearest ones; with K = 1 it is the
nearest neighbour.
"""

import torch
from torch import Tensor

from momacli.shapes import Float, Int

_CHUNK = 256
"""Queries at a time: bounds the memory, changes no number."""


def class_distances(
    features: Float[Tensor, "N d"],
    support: Float[Tensor, "M d"],
    labels: Int[Tensor, " M"],
    classes: int,
) -> Float[Tensor, "N C"]:
    """Return d_c of each row for each of C classes; infinite where a class has no support.

    In float64, and exactly 0 for a sample that is its class's only support.
    """
    counts = torch.bincount(labels, minlength=classes)
    wide, whole = support.double(), []
    for rows in features.double().split(_CHUNK):
        each = torch.cdist(rows, wide, compute_mode="donot_use_mm_for_euclid_dist")
        whole.append(each.new_zeros(len(rows), classes).index_add_(1, labels, each))
    sums = torch.cat(whole) if whole else wide.new_zeros(0, classes)
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf)


def knn_classes(
    features: Float[Tensor, "N d"],
    support: Float[Tensor, "M d"],
    labels: Int[Tensor, " M"],
    classes: int,
) -> Int[Tensor, " N"]:
    """Return the class of each row by Eq. 6; of equally near ones the first."""
    return class_distances(features, support, labels, classes).argmin(dim=1)
