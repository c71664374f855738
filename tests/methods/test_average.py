import torch

from momacli.methods.average import average


def test_equal_weights_give_the_mean():
    taus = torch.tensor([[1.0, 0.0], [3.0, -6.0], [5.0, 0.0]])

    torch.testing.assert_close(average(taus), torch.tensor([3.0, -2.0]))


def test_only_the_ratios_of_the_weights_matter():
    taus = torch.tensor([[4.0, 0.0], [0.0, 8.0]])

    merged = average(taus, weights=torch.tensor([3.0, 1.0]))

    torch.testing.assert_close(merged, torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(average(taus, weights=torch.tensor([30.0, 10.0])), merged)


def test_lambda_scales_the_mean():
    taus = torch.tensor([[2.0], [4.0]])

    torch.testing.assert_close(average(taus, lam=0.5), torch.tensor([1.5]))
