import numpy as np
import torch

from momacli.alignment.objectives import (
    answers_and_features,
    feature_distance,
    logit_divergence,
    objective_called,
)
from momacli.models.interface import Head


def test_feature_distance_is_the_mean_of_unsquared_norms():
    aligned = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    finetuned = torch.tensor([[0.0, 0.0], [1.0, 1.0]])

    assert feature_distance(aligned, finetuned).item() == 2.5


def test_logit_divergence_is_the_kullback_leibler_divergence_of_the_answers():
    generator = torch.Generator().manual_seed(0)
    aligned, finetuned = torch.randn(2, 9, 4, generator=generator)
    head = Head(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator))

    def answers(z):
        logits = z.numpy().astype(float) @ head.weight.numpy().T + head.bias.numpy()
        exp = np.exp(logits - logits.max(1, keepdims=True))
        return exp / exp.sum(1, keepdims=True)

    p, q = answers(finetuned), answers(aligned)
    expected = (p * np.log(p / q)).sum(1).mean()

    np.testing.assert_allclose(logit_divergence(aligned, finetuned, head), expected, rtol=1e-5)


def test_all_are_zero_where_features_agree():
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    head = Head(torch.eye(4), None)

    for name in ("both", "logits", "features"):
        assert abs(objective_called(name)(features, features, head).item()) < 1e-6


def test_both_adds_the_distance_in_lengths_of_features():
    generator = torch.Generator().manual_seed(0)
    aligned, finetuned = torch.randn(2, 9, 4, generator=generator)
    head = Head(torch.randn(3, 4, generator=generator), None)

    added = answers_and_features(aligned, finetuned, head)
    added = added - logit_divergence(aligned, finetuned, head)
    distances = np.linalg.norm((aligned - finetuned).numpy(), axis=1).mean()
    length = np.sqrt((finetuned.numpy() ** 2).sum(1).mean())
    np.testing.assert_allclose(added, distances / length, rtol=1e-5)


def test_the_unit_of_features_does_not_matter_to_both():
    generator = torch.Generator().manual_seed(0)
    aligned, finetuned = torch.randn(2, 9, 4, generator=generator)
    weight = torch.randn(3, 4, generator=generator)

    one = answers_and_features(aligned, finetuned, Head(weight, None))
    other = answers_and_features(7 * aligned, 7 * finetuned, Head(weight / 7, None))

    torch.testing.assert_close(one, other)


def test_features_that_are_all_zero_give_a_finite_objective():
    aligned = torch.ones(2, 4, requires_grad=True)

    value = answers_and_features(aligned, torch.zeros(2, 4), Head(torch.eye(4), None))
    value.backward()

    assert torch.isfinite(value)
    assert torch.isfinite(aligned.grad).all()
