"""Tests of Iso-C."""

import numpy as np
import pytest
import torch

from momacli.methods.iso_c import iso_c


def task_vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_all_singular_values_become_their_mean(shape):
    taus = task_vectors(3, *shape)

    merged = iso_c(taus)

    u, s, vt = np.linalg.svd(taus.double().sum(0).numpy(), full_matrices=False)
    np.testing.assert_allclose(np.linalg.svd(merged.numpy())[1], s.mean(), rtol=1e-5)
    np.testing.assert_allclose(merged.numpy(), s.mean() * u @ vt, atol=1e-5)


def test_a_diagonal_update_gets_equal_entries_of_its_own_signs():
    merged = iso_c(torch.tensor([[[3.0, 0.0], [0.0, -1.0]]]), lam=0.5)

    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))


def test_directions_that_no_task_moved_in_stay_unmoved():
    u = task_vectors(6, 2)
    taus = torch.stack([u @ task_vectors(2, 9), u @ task_vectors(2, 9).flip(1)])

    merged = iso_c(taus)

    assert torch.linalg.matrix_rank(merged, rtol=1e-4) == 2


def test_a_rank_one_update_is_returned():
    tau = torch.outer(task_vectors(4), task_vectors(7))

    torch.testing.assert_close(iso_c(tau[None]), tau)


def test_the_result_grows_with_the_task_vectors():
    taus = task_vectors(3, 5, 8)

    torch.testing.assert_close(iso_c(1e-3 * taus), 1e-3 * iso_c(taus))


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 4)])
def test_tensors_that_are_no_matrices_are_averaged(shape):
    taus = task_vectors(4, *shape)

    torch.testing.assert_close(iso_c(taus, lam=2.0), 2 * taus.mean(dim=0))
