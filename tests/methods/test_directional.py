"""Tests of merging with directional alignment."""

import numpy as np
import pytest
import torch

from momacli.methods.directional import directional


def task_vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
def test_each_task_is_projected_on_its_block_of_the_shared_bases(shape):
    taus = task_vectors(3, *shape)

    merged = directional(taus)

    x = taus.double().numpy()
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in x]
    u = polar(np.hstack([u[:, :3] for u, _, _ in parts]))
    vt = polar(np.vstack([vt[:3] for _, _, vt in parts]))
    core = np.zeros((9, 9))
    for t, tau in enumerate(x):
        own = slice(3 * t, 3 * t + 3)
        core[own, own] = u[:, own].T @ tau @ vt[own].T
    np.testing.assert_allclose(merged.numpy(), u @ core @ vt, atol=1e-5)


def test_one_task_comes_back():
    tau = task_vectors(1, 6, 9)

    torch.testing.assert_close(directional(tau), tau[0])


def test_tasks_that_share_no_directions_are_added():
    taus = torch.zeros(2, 6, 8)
    taus[0, :3, :4] = task_vectors(3, 4)
    taus[1, 3:, 4:] = task_vectors(3, 4)

    torch.testing.assert_close(directional(taus), taus.sum(dim=0))


def test_equal_tasks_come_back_at_half_their_strength():
    tau = torch.outer(task_vectors(6), task_vectors(9))

    torch.testing.assert_close(directional(torch.stack([tau, tau])), 0.5 * tau)


def test_tasks_of_different_rank_keep_to_their_own_directions():
    taus = torch.zeros(2, 6, 8)
    taus[0, :3, :4] = task_vectors(3, 4)
    taus[1, 3, 4] = 1.0

    torch.testing.assert_close(directional(taus), taus.sum(dim=0))


def test_the_order_of_the_tasks_does_not_matter():
    taus = task_vectors(3, 9, 7)

    torch.testing.assert_close(directional(taus.flip(0)), directional(taus))


def test_turning_the_outputs_of_all_tasks_turns_the_result():
    taus = task_vectors(3, 6, 9)
    q = torch.linalg.qr(task_vectors(6, 6)).Q

    torch.testing.assert_close(directional(q @ taus), q @ directional(taus))


def test_tensors_that_are_no_matrices_are_averaged():
    taus = task_vectors(4, 2, 3, 4, 4)

    torch.testing.assert_close(directional(taus, lam=0.5), 0.5 * taus.mean(dim=0))
