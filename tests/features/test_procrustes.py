import math

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, PretendedDevice

from momacli.features.procrustes import orthogonality_error, polar_factor, procrustes


def random_orthogonal(d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def random(m: int, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


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


@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e9])
@pytest.mark.parametrize("device", [torch.device("cpu"), DEVICE], ids=str)
def test_of_few_columns_it_is_what_the_singular_value_decomposition_says(
    columns, condition, device
):
    u = torch.linalg.qr(random(8, columns, seed=1))[0]
    v = torch.linalg.qr(random(columns, columns, seed=2))[0]
    sizes = torch.logspace(0, -math.log10(condition), columns, dtype=torch.float64)

    with PretendedDevice():
        found = polar_factor(((u * sizes) @ v.mT).to(device)).cpu()

    torch.testing.assert_close(found, u @ v.mT, atol=1e-14 * condition + 1e-12, rtol=0)
    assert orthogonality_error(found) < 1e-12


@pytest.mark.parametrize("singular", [False, True])
def test_another_device_comes_to_the_factors_of_the_processor(singular):
    matrices = torch.stack([random(6, 6, seed=n) for n in range(3)])
    matrices[1, 0] *= 0.0 if singular else 1e-4

    with PretendedDevice() as device:
        found = polar_factor(matrices.to(DEVICE)).cpu()

    assert device.calls > 20
    assert orthogonality_error(found).max() < 1e-12
    torch.testing.assert_close(found[[0, 2]], polar_factor(matrices)[[0, 2]], atol=1e-9, rtol=0)
    stretches = found.mT @ matrices  # symmetric and without a negative value: the other factor
    torch.testing.assert_close(stretches, stretches.mT, atol=1e-9, rtol=0)
    assert torch.linalg.eigvalsh(stretches).min() > -1e-12


def test_the_error_of_orthogonality_is_the_largest_entry_of_the_difference():
    matrix = torch.tensor([[2.0, 0.0], [0.0, 1.0]])

    assert float(orthogonality_error(matrix)) == 3.0
