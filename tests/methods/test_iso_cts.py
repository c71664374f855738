"""Tests of Iso-CTS."""

import numpy as np
import pytest
import torch

from momacli.methods.iso_c import iso_c
from momacli.methods.iso_cts import iso_cts


def task_vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def polar(matrix: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(10, 14), (14, 10)])
def test_common_and_task_specific_directions_are_joined_and_flattened(shape):
    taus = task_vectors(3, *shape)

    merged = iso_cts(taus, common_fraction=0.4)  # 4 common of 10, 2 for each of 3 tasks

    x = taus.double().numpy()
    u, s, vt = np.linalg.svd(x.sum(0), full_matrices=False)
    us, ss, vts = [u[:, :4]], [s[:4]], [vt[:4]]
    for tau in x:
        a, b, c = np.linalg.svd(tau - u[:, :4] @ u[:, :4].T @ tau, full_matrices=False)
        us, ss, vts = [*us, a[:, :2]], [*ss, b[:2]], [*vts, c[:2]]
    expected = np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vts))
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-5)


def test_all_singular_values_are_equal():
    merged = iso_cts(task_vectors(3, 10, 14), common_fraction=0.4)

    s = torch.linalg.svdvals(merged)
    torch.testing.assert_close(s, s.mean().expand(10))


@pytest.mark.parametrize(("tasks", "fraction"), [(3, 1.0), (1, 0.8)])
def test_all_directions_common_or_all_of_one_task_is_iso_c(tasks, fraction):
    taus = task_vectors(tasks, 10, 14)

    torch.testing.assert_close(iso_cts(taus, common_fraction=fraction), iso_c(taus))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8])
def test_a_matrix_smaller_than_the_number_of_tasks_is_merged(fraction):
    taus = task_vectors(8, 3, 5)

    merged = iso_cts(taus, common_fraction=fraction)

    assert merged.isfinite().all()
    assert merged.any()


def test_the_order_of_the_tasks_does_not_matter():
    taus = task_vectors(3, 10, 14)

    torch.testing.assert_close(iso_cts(taus.flip(0)), iso_cts(taus))


def test_tensors_that_are_no_matrices_are_averaged():
    taus = task_vectors(4, 2, 3, 4, 4)

    torch.testing.assert_close(iso_cts(taus), taus.mean(dim=0))
