import math

import torch

from momacli.adaptation.entropy import mean_entropy


def test_entropy_is_log_of_the_classes_where_nothing_is_known_and_zero_where_all_is():
    assert math.isclose(float(mean_entropy(torch.zeros(4, 7))), math.log(7), rel_tol=1e-6)
    assert float(mean_entropy(torch.tensor([[1e4, 0.0, 0.0]]))) == 0.0


def test_entropy_and_its_gradient_are_those_of_torch_distributions():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    found = mean_entropy(logits)

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    )
