import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.emr import emr, first_pass


def test_elect_mask_and_rescale_by_hand():
    taus = torch.tensor([[1.0, -2.0, 3.0], [2.0, 1.0, -1.0]])

    merged = emr(taus, task=0)

    # signs +, -, +: unified 2, -2, 3; task 0 agrees everywhere: (1 + 2 + 3) / (2 + 2 + 3)
    torch.testing.assert_close(merged, 6 / 7 * torch.tensor([2.0, -2.0, 3.0]))
    # task 1 agrees in the first entry: (2 + 1 + 1) / 2
    torch.testing.assert_close(emr(taus, task=1), 2.0 * torch.tensor([2.0, 0.0, 0.0]))


def test_a_single_task_is_reconstructed_exactly():
    tau = torch.tensor([[1.0, -2.0, 0.0]])

    torch.testing.assert_close(emr(tau, task=0), tau[0])


@pytest.mark.parametrize("task", range(3))
def test_a_reconstruction_has_the_expert_sum_of_magnitudes_over_the_whole_model(task: int):
    taus = torch.randn(3, 90, generator=torch.Generator().manual_seed(0))
    tensors = taus.split([10, 30, 50], dim=1)
    statistic = first_pass(lambda: tensors)

    merged = torch.cat([emr(part, task=task, statistic=statistic) for part in tensors])

    torch.testing.assert_close(merged.abs().sum(), taus[task].abs().sum())
    torch.testing.assert_close(merged, emr(taus, task=task))


def test_it_agrees_with_the_definition_in_numpy():
    taus = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))

    merged = emr(taus, task=2)

    tau = taus.numpy().astype(np.float64)
    gamma = np.sign(tau.sum(axis=0))
    unified = gamma * np.max(np.where(tau * gamma > 0, np.abs(tau), 0), axis=0)
    masked = unified * (tau[2] * unified > 0)
    rescale = np.abs(tau[2]).sum() / np.abs(masked).sum()
    np.testing.assert_allclose(merged.numpy(), rescale * masked, rtol=1e-5)


def test_an_expert_that_never_wins_an_election_is_the_base():
    taus = torch.tensor([[1.0, -1.0], [-3.0, 3.0]])

    torch.testing.assert_close(emr(taus, task=0), torch.zeros(2))


@pytest.mark.parametrize("task", [None, -1, 2])
def test_a_task_that_is_none_of_the_experts_is_refused(task: int | None):
    with pytest.raises(UsageError, match="task"):
        emr(torch.ones(2, 3), task=task)
