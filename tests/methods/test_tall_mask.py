import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.tall_mask import tall_mask


def test_a_task_takes_from_the_multi_task_vector_what_it_recognizes():
    taus = torch.tensor([[1.0, 1.0, 0.1], [0.5, -0.9, 2.0]])  # sums 1.5, 0.1, 2.1

    merged = tall_mask(taus, task=0, mask_lam=0.5)

    # |1| > .5 * .5; |1| > .5 * .9; not |.1| > .5 * 2
    torch.testing.assert_close(merged, torch.tensor([1.5, 0.1, 0.0]))


def test_a_single_task_is_reconstructed_exactly():
    tau = torch.tensor([[1.0, -2.0, 0.0]])

    torch.testing.assert_close(tall_mask(tau, task=0), tau[0])


def test_tasks_on_different_entries_are_all_reconstructed_exactly():
    taus = torch.block_diag(*torch.ones(3, 1, 4))

    merged = torch.stack([tall_mask(taus, task=t) for t in range(3)])

    torch.testing.assert_close(merged, taus)


def test_the_mask_compares_distances_to_the_expert_not_task_vectors_to_the_base():
    """The published slip |theta_0 - tau_t| > lambda |tau_mtl - tau_t| is nearly always true."""
    taus = 1e-3 * torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))

    merged = tall_mask(taus, task=3, mask_lam=0.6)

    tau = taus.numpy().astype(np.float64)
    mask = np.abs(tau[3]) > 0.6 * np.abs(tau.sum(axis=0) - tau[3])
    assert 0.2 < mask.mean() < 0.5
    np.testing.assert_allclose(merged.numpy(), mask * tau.sum(axis=0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("task", [None, -1, 2])
def test_a_task_that_is_none_of_the_experts_is_refused(task: int | None):
    with pytest.raises(UsageError, match="task"):
        tall_mask(torch.ones(2, 3), task=task)
