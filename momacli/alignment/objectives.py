"""How well a merged model does a task's job, from features alone; lower is better.

Each objective gives one number a task: the mean over that task's samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from momacli.models.interface import Head
from momacli.shapes import Float

Objective = Callable[[Tensor, Tensor, Head], Tensor]
"""Aligned and fine-tuned features [n, d] and the task's head -> one number."""


def objective_called(name: str) -> Objective:
    """Return "both", "logits" or "features", as settings name them."""
    if name == "both":
        return answers_and_features
    if name == "logits":
        return logit_divergence
    return lambda aligned, finetuned, _head: feature_distance(aligned, finetuned)


def answers_and_features(
    aligned: Float[Tensor, "n d"], finetuned: Float[Tensor, "n d"], head: Head
) -> Float[Tensor, ""]:
    """Return the KL of answers + E|A z_m - z_t|_2 / sqrt(E|z_t|^2).

    Answers are what counts, but a sample's are few numbers, soon learned by heart where samples
    are few; its features are many more.
    """
    length = finetuned.square().sum(dim=1).mean().sqrt()
    far = feature_distance(aligned, finetuned) / length.clamp(min=1e-12)
    return logit_divergence(aligned, finetuned, head) + far


def feature_distance(
    aligned: Float[Tensor, "n d"], finetuned: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """Return E|A z_m - z_t|_2, the norm of each sample not squared (MOMA Eq. 10)."""
    distances: Tensor = torch.linalg.vector_norm(aligned - finetuned, dim=1)
    return distances.mean()


def logit_divergence(
    aligned: Float[Tensor, "n d"], finetuned: Float[Tensor, "n d"], head: Head
) -> Float[Tensor, ""]:
    """Return KL(softmax(h(z_t)) || softmax(h(A z_m))) through the frozen head.

    The paper argues that logits are what has to agree (MOMA Eq. 2, section 2.4) and optimises
    features; this optimises logits.
    """
    return answer_divergence(head(aligned), head(finetuned))


def answer_divergence(
    found: Float[Tensor, "n C"], wanted: Float[Tensor, "n C"]
) -> Float[Tensor, ""]:
    """Return KL(softmax(wanted) || softmax(found)) of logits, the mean of the samples."""
    student = torch.log_softmax(found, dim=1)
    teacher = torch.log_softmax(wanted, dim=1)
    return torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
