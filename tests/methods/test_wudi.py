"""Tests of WUDI merging."""

import numpy as np
import torch

from momacli.methods.wudi import wudi


def task_vectors(*shape: int) -> torch.Tensor:
    return 1e-3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def interference(merged: np.ndarray, taus: np.ndarray) -> float:
    return sum((((merged - tau) @ tau.T) ** 2).sum() / (tau**2).sum() for tau in taus)


def optimized(taus: np.ndarray, steps: int, lr: float) -> np.ndarray:
    """Adam on the paper's loss, from Kingma and Ba's algorithm."""
    x, m, v = taus.sum(0), 0.0, 0.0
    for step in range(1, steps + 1):
        g = sum(2 * (x - tau) @ tau.T @ tau / (tau**2).sum() for tau in taus)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return x


def test_adam_walks_down_the_papers_loss():
    taus = task_vectors(3, 6, 9)

    merged = wudi(taus, steps=40)

    np.testing.assert_allclose(
        merged.numpy(), optimized(taus.double().numpy(), 40, 1e-5), atol=2e-7
    )


def test_interference_falls_to_less_than_half_of_that_of_the_sum():
    taus = task_vectors(4, 16, 20)

    merged = wudi(taus, lam=1.0)

    x = taus.double().numpy()
    assert interference(merged.double().numpy(), x) < 0.5 * interference(x.sum(0), x)


def test_one_task_comes_back_bit_for_bit():
    tau = task_vectors(1, 6, 9)

    torch.testing.assert_close(wudi(tau), tau[0], rtol=0, atol=0)


def test_tasks_on_different_inputs_do_not_interfere_and_are_added():
    taus = torch.zeros(2, 5, 8)
    taus[0, :, :4] = task_vectors(5, 4)
    taus[1, :, 4:] = task_vectors(5, 4)

    torch.testing.assert_close(wudi(taus), taus.sum(dim=0), rtol=0, atol=0)


def test_an_expert_that_did_not_move_interferes_with_nothing():
    taus = task_vectors(2, 6, 9)

    merged = wudi(torch.cat([taus, torch.zeros(1, 6, 9)]))

    torch.testing.assert_close(merged, wudi(taus))


def test_tensors_that_are_no_matrices_are_averaged():
    taus = task_vectors(4, 2, 3, 4, 4)

    torch.testing.assert_close(wudi(taus), taus.mean(dim=0))
