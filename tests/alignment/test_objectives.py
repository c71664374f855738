import numpy as np
import torch

from momacli.alignment.objectives import feature_distance, logit_divergence
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


def test_both_are_zero_where_features_agree():
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    head = Head(torch.eye(4), None)

    assert feature_distance(features, features).item() == 0.0
    assert abs(logit_divergence(features, features, head).item()) < 1e-7
