"""Tests of TSV-M."""

import numpy as np
import pytest
import torch

from momacli.methods.tsv_m import tsv_m


def task_vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def truncated(tau: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vt = torch.linalg.svd(tau, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
def test_the_leading_triplets_are_made_orthogonal_across_tasks(shape):
    taus = task_vectors(3, *shape)

    merged = tsv_m(taus)

    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus.double().numpy()]
    u = polar(np.hstack([u[:, :3] for u, _, _ in parts]))
    vt = polar(np.vstack([vt[:3] for _, _, vt in parts]))
    s = np.concatenate([s[:3] for _, s, _ in parts])
    np.testing.assert_allclose(merged.numpy(), u * s @ vt, atol=1e-5)


def test_one_task_comes_back():
    tau = task_vectors(1, 8, 12)

    torch.testing.assert_close(tsv_m(tau), tau[0])


def test_tasks_that_share_no_directions_are_added():
    taus = torch.zeros(2, 6, 8)
    taus[0, :3, :4] = task_vectors(3, 4)
    taus[1, 3:, 4:] = task_vectors(3, 4)

    torch.testing.assert_close(tsv_m(taus), taus.sum(dim=0))


def test_equal_tasks_are_not_added_twice():
    tau = task_vectors(6, 8)

    merged = tsv_m(torch.stack([tau, tau]))

    torch.testing.assert_close(merged, truncated(tau, 3), rtol=0, atol=1e-5)


def test_an_expert_that_did_not_move_does_not_disturb_the_others():
    tau = task_vectors(6, 8)

    merged = tsv_m(torch.stack([tau, torch.zeros(6, 8)]))

    torch.testing.assert_close(merged, truncated(tau, 3), rtol=0, atol=1e-5)


def test_a_matrix_smaller_than_the_number_of_tasks_keeps_an_update():
    taus = task_vectors(8, 1, 5)

    merged = tsv_m(taus)

    assert merged.any()


def test_tensors_that_are_no_matrices_are_averaged():
    taus = task_vectors(4, 2, 3, 4, 4)

    torch.testing.assert_close(tsv_m(taus, lam=0.5), 0.5 * taus.mean(dim=0))
