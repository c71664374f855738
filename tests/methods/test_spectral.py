"""Tests of leading singular directions."""

import numpy as np
import pytest
import torch

from momacli.methods._spectral import leading_svd, nearest_isometry


def matrix_with(singular_values: list[float], shape: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    k = len(singular_values)
    u = torch.linalg.qr(torch.randn(shape[0], k, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(shape[1], k, generator=generator, dtype=torch.float64)).Q
    return u * torch.tensor(singular_values, dtype=torch.float64) @ v.mT


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_leading_triplets_are_those_of_an_svd(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))

    u, s, vt = leading_svd(matrix, 3)

    u_, s_, vt_ = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(s.numpy(), s_[:3])
    np.testing.assert_allclose((u * s @ vt).numpy(), u_[:, :3] * s_[:3] @ vt_[:3], atol=1e-12)


def test_small_directions_are_still_orthonormal():
    matrix = matrix_with([1.0, 1e-2, 1e-4, 1e-5], (8, 20))

    u, s, vt = leading_svd(matrix)

    torch.testing.assert_close(s, torch.tensor([1.0, 1e-2, 1e-4, 1e-5], dtype=torch.float64))
    torch.testing.assert_close(u.mT @ u, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(vt @ vt.mT, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)


def test_directions_of_rounding_are_left_out():
    matrix = matrix_with([1.0, 0.5], (6, 7)).float()

    u, s, vt = leading_svd(matrix)

    assert (u.shape, s.shape, vt.shape) == ((6, 2), (2,), (2, 7))


def test_a_zero_matrix_has_no_directions():
    assert leading_svd(torch.zeros(3, 4))[1].shape == (0,)
    assert not nearest_isometry(torch.zeros(3, 4)).any()


def test_the_nearest_isometry_has_orthonormal_columns_and_keeps_those_that_are():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 4, generator=generator)

    isometry = nearest_isometry(matrix)

    torch.testing.assert_close(isometry.mT @ isometry, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(nearest_isometry(isometry), isometry)
