import pytest
import torch

from momacli.features.metrics import Distribution, coefficient, cosine, distribution


def test_cosine_and_coefficient_of_scaled_and_turned_vectors():
    v = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    u = torch.tensor([[6.0, 8.0], [0.0, 5.0], [0.0, -1.0]])

    torch.testing.assert_close(cosine(u, v), torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(coefficient(u, v), torch.tensor([2.0, 0.0, -0.5]))


def test_a_zero_vector_gives_zero_and_not_nan():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)

    assert cosine(zero, one).item() == 0.0
    assert coefficient(one, zero).item() == 0.0


def test_a_distribution_is_told_by_mean_deviation_and_quantiles():
    values = torch.arange(101.0)

    found = distribution(values)

    assert (found.mean, found.low, found.median, found.high) == (50.0, 5.0, 50.0, 95.0)
    assert found.deviation == pytest.approx(((101**2 - 1) / 12) ** 0.5)
    assert distribution(torch.ones(1)) == Distribution(1.0, 0.0, 1.0, 1.0, 1.0)
