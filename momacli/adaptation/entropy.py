"""The objective of methods that learn from unlabeled samples: how unsure the answers are."""

from torch import Tensor

from momacli.shapes import Float


def mean_entropy(logits: Float[Tensor, "N C"]) -> Float[Tensor, ""]:
    """Return the mean over samples of -sum_c p_c log p_c, 0 to log C (AdaMerging, Eq. 3).

    Computed from log-softmax, so that no constant is needed inside a logarithm.
    """
    log_p = logits.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()
