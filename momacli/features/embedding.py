"""Features in the plane by t-SNE (van der Maaten and Hinton 2008), as MOMA Figures 1 and 2."""

import torch
from torch import Tensor

from momacli.shapes import Float

PERPLEXITY = 30.0
"""scikit-learn's default; the paper does not give one."""

FEWEST = 8
"""Points below which neighbourhoods mean nothing."""


def embed(features: Float[Tensor, "N d"], *, seed: int) -> Float[Tensor, "N 2"]:
    """Return a place in the plane for each of at least FEWEST rows, of two numbers or more.

    What is to be compared has to be embedded together: places of two calls have nothing to do
    with each other. The perplexity is lowered where there are few rows. Rows that are all the
    same are at one place.
    """
    from sklearn.manifold import TSNE

    rows = features.float().cpu()
    if bool((rows == rows[0]).all()):  # without principal axes to begin with, t-SNE crashes
        return torch.zeros(len(rows), 2)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return torch.from_numpy(model.fit_transform(rows.numpy())).float()
