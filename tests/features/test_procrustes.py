import numpy as np
import pytest
import torch

from momacli.features.procrustes import orthogonality_error, polar_factor, procrustes


def random_orthogonal(d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


@pytest.mark.parametrize("determinant", [1.0, -1.0])
def test_a_planted_orthogonal_matrix_is_recovered(determinant):
    planted = random_orthogonal(12, 0)
    if torch.linalg.det(planted) * determinant < 0:
        planted[0] *= -1
    merged = torch.randn(200, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    found = procrustes(merged, merged @ planted.mT)

    torch.testing.assert_close(found, planted, atol=1e-10, rtol=0)


def test_no_other_orthogonal_matrix_fits_better():
    generator = torch.Generator().manual_seed(2)
    merged, finetuned = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    best = procrustes(merged, finetuned)
    reached = (merged @ best.mT - finetuned).square().sum()

    for seed in range(50):
        skew = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).double()
        near = best @ torch.matrix_exp(0.1 * (skew - skew.mT))
        assert (merged @ near.mT - finetuned).square().sum() >= reached


def test_it_agrees_with_the_singular_value_decomposition_of_numpy():
    generator = torch.Generator().manual_seed(3)
    merged, finetuned = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)

    u, _, vh = np.linalg.svd(finetuned.numpy().T @ merged.numpy())

    np.testing.assert_allclose(procrustes(merged, finetuned).numpy(), u @ vh, atol=1e-10)


def test_the_result_is_orthogonal_even_where_features_span_little():
    merged = torch.zeros(10, 8)
    merged[:, 0] = 1.0

    found = procrustes(merged, merged)

    assert orthogonality_error(found) < 1e-6
    torch.testing.assert_close(merged @ found.mT, merged, atol=1e-6, rtol=0)


def test_the_polar_factor_of_zero_is_the_identity_and_of_an_orthogonal_matrix_itself():
    q = random_orthogonal(7, 4)

    torch.testing.assert_close(polar_factor(torch.zeros(2, 3, 3)), torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(polar_factor(q), q)


def test_the_error_of_orthogonality_is_the_largest_entry_of_the_difference():
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])

    assert float(orthogonality_error(matrix)) == 3.0
