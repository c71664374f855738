"""Tests of orthogonal model merging."""

import math

import numpy as np
import pytest
import torch

from momacli.methods.orthomerge import orthomerge
from momacli.methods.task_arithmetic import task_arithmetic
from momacli.methods.ties import ties
from momacli.methods.tsv_m import tsv_m


def base_and_task_vectors(tasks: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(*shape, generator=generator)
    return base, 0.1 * torch.randn(tasks, *shape, generator=generator)


def turn(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s], [s, c]])


def merged_by_numpy(base: np.ndarray, taus: np.ndarray, lam: float) -> np.ndarray:
    """The global variant with summed residuals, W0 turned from the right."""
    eye = np.eye(base.shape[1])
    generators = []
    for tau in taus:
        u, _, vt = np.linalg.svd(base.T @ (base + tau))
        generators.append(np.linalg.solve(u @ vt + eye, u @ vt - eye))
    total = sum(generators)
    mean = np.mean([np.linalg.norm(a) for a in generators])
    merged = total / np.linalg.norm(total) * mean
    turned = [base @ np.linalg.solve(eye - a, eye + a) for a in [merged, *generators]]
    residual = sum(base + tau - own for tau, own in zip(taus, turned[1:], strict=True))
    return turned[0] + lam * residual - base


def test_a_tall_matrix_is_turned_from_the_right():
    base, taus = base_and_task_vectors(3, 9, 6)

    merged = orthomerge(taus, base=base, variant="global", lam_residual=0.2)

    expected = merged_by_numpy(base.double().numpy(), taus.double().numpy(), 0.2)
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-5)


def test_a_wide_matrix_is_turned_from_the_left():
    base, taus = base_and_task_vectors(3, 6, 9)

    merged = orthomerge(taus, base=base, variant="global", lam_residual=0.2)

    expected = merged_by_numpy(base.double().numpy().T, taus.double().numpy().swapaxes(1, 2), 0.2)
    np.testing.assert_allclose(merged.numpy(), expected.T, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 4), (6, 6), (4, 9)])
@pytest.mark.parametrize("variant", ["conflict", "global"])
@pytest.mark.parametrize("residual", ["task_arithmetic", "tsv_m"])
def test_a_single_task_with_its_whole_residual_comes_back(shape, variant, residual):
    base, taus = base_and_task_vectors(1, *shape)

    merged = orthomerge(taus, base=base, variant=variant, residual=residual, lam_residual=1.0)

    torch.testing.assert_close(merged, taus[0], rtol=0, atol=1e-7)


def test_turns_of_10_and_30_degrees_merge_to_the_mean_of_their_half_angle_tangents():
    base = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    taus = torch.stack([base @ turn(10) - base, base @ turn(30) - base])

    merged = orthomerge(taus, base=base, variant="global")

    mean = (math.tan(math.radians(5)) + math.tan(math.radians(15))) / 2
    expected = base @ turn(2 * math.degrees(math.atan(mean))) - base
    torch.testing.assert_close(merged, expected)


def test_without_residuals_the_base_keeps_its_singular_values():
    base, taus = base_and_task_vectors(3, 6, 9)

    merged = orthomerge(taus, base=base, variant="global", lam_residual=0.0)

    torch.testing.assert_close(torch.linalg.svdvals(base + merged), torch.linalg.svdvals(base))
    assert merged.norm() > 0.1


def test_only_rows_against_the_mean_of_all_tasks_are_taken_for_rotation():
    base, taus = base_and_task_vectors(3, 8, 5)
    taus[:, :4] = taus[0, :4]  # no conflict in these rows

    merged = orthomerge(taus, base=base, variant="conflict", lam_residual=0.0)

    mean = taus.mean(dim=0)
    conflicting = (taus * mean).sum(dim=2, keepdim=True) < 0
    expected = orthomerge(taus * conflicting, base=base, variant="global", lam_residual=0.0)
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize(
    ("residual", "method"),
    [
        ("task_arithmetic", lambda taus: task_arithmetic(taus, lam=0.2)),
        ("ties", lambda taus: ties(taus, density=0.2, lam=1.0)),
        ("tsv_m", lambda taus: tsv_m(taus, lam=1.0)),
    ],
)
def test_tasks_without_conflicts_are_all_residual_merged_as_the_authors_do(residual, method):
    base, taus = base_and_task_vectors(3, 6, 9)
    taus = taus.abs()

    merged = orthomerge(taus, base=base, residual=residual)

    torch.testing.assert_close(merged, method(taus))


def test_a_task_that_reflects_is_all_residual():
    base = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    taus = (base * torch.tensor([1.0, -1.0]) - base)[None]

    merged = orthomerge(taus, base=base, variant="global", lam_residual=0.5)

    torch.testing.assert_close(merged, 0.5 * taus[0])


@pytest.mark.parametrize("rank", [0, 3])
def test_directions_without_extent_in_the_base_are_not_turned(rank):
    base, taus = base_and_task_vectors(2, 9, 6)
    base[:, rank:] = 0.0
    taus[:, :, rank:] = 0.0

    merged = orthomerge(taus, base=base, variant="global", lam_residual=0.2)

    smaller = orthomerge(taus[:, :, :rank], base=base[:, :rank], variant="global", lam_residual=0.2)
    torch.testing.assert_close(merged[:, :rank], smaller)
    assert not merged[:, rank:].any()


def test_the_order_of_the_tasks_does_not_matter():
    base, taus = base_and_task_vectors(3, 6, 9)

    torch.testing.assert_close(orthomerge(taus.flip(0), base=base), orthomerge(taus, base=base))


def test_tensors_that_are_no_matrices_are_all_residual():
    base, taus = base_and_task_vectors(3, 2, 3, 4, 4)

    torch.testing.assert_close(orthomerge(taus, base=base), 0.2 * taus.sum(dim=0))
