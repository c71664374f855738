import torch

from momacli.methods.task_arithmetic import task_arithmetic


def test_lambda_times_the_sum_is_added():
    taus = torch.tensor([[1.0, 2.0], [3.0, -6.0]])

    torch.testing.assert_close(task_arithmetic(taus, lam=0.5), torch.tensor([2.0, -2.0]))


def test_a_negative_weight_subtracts_a_task():
    taus = torch.tensor([[1.0, 2.0], [3.0, -6.0]])

    merged = task_arithmetic(taus, lam=1.0, weights=torch.tensor([1.0, -1.0]))

    torch.testing.assert_close(merged, torch.tensor([-2.0, 8.0]))
