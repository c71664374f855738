import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.pcb import first_pass, pcb


def scale_to_one(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (np.clip(x, low, high) - low) / (high - low)


def kth_largest(x: np.ndarray, share: float) -> np.ndarray:
    k = max(1, int(share * x.shape[1]))
    return np.sort(x, axis=1)[:, ::-1][:, k - 1 : k]


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize(("variant", "clip"), [("normalized", 0.01), ("raw", 0.0001)])
def test_it_agrees_with_the_formula_written_in_numpy(variant, clip: float, scale: float):
    T, n, density = 3, 2000, 0.1
    taus = scale * torch.randn(T, n, generator=torch.Generator().manual_seed(0))

    merged = pcb(taus, variant=variant, density=density, lam=1.2)

    tau = taus.numpy().astype(np.float64)
    low, high = kth_largest(np.abs(tau), 1 - clip), kth_largest(np.abs(tau), clip)
    unit = scale_to_one(np.abs(tau), low, high)
    signed = np.sign(tau) * unit
    if variant == "raw":
        agreement = np.tanh(tau * tau.sum(axis=0))
    else:
        agreement = np.stack([np.tanh(signed[i] * signed).sum(axis=0) for i in range(T)])
    score = np.exp(T * unit**2) * agreement
    assert (score > 0).mean() > density  # so that a score below 0 is never kept
    s = scale_to_one(score, kth_largest(score, density), score.max(axis=1, keepdims=True))
    expected = (s * np.sign(tau) * np.clip(np.abs(tau), low, high)).sum(axis=0)
    expected /= np.maximum(s.sum(axis=0), 1e-12)
    np.testing.assert_allclose(merged.numpy(), 1.2 * expected, rtol=2e-3, atol=1e-6 * scale)
    assert 0.1 < (merged != 0).float().mean() < 0.3


def test_where_one_expert_competes_alone_its_clipped_entry_is_taken():
    taus = torch.zeros(2, 100)
    taus[0, :50] = torch.arange(1.0, 51)
    taus[1, 50:] = -torch.arange(1.0, 51)

    merged = pcb(taus, density=0.05, lam=1.0)

    # the top 5 % of a hundred scores are five, of which the lowest is scaled to 0
    kept = torch.tensor([47.0, 48.0, 49.0, 50.0])
    torch.testing.assert_close(merged[46:50], kept)
    torch.testing.assert_close(merged[96:100], -kept)
    assert merged.count_nonzero() == 8


def test_weights_multiply_the_task_vectors_not_the_competition():
    taus = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))

    merged = pcb(taus, weights=torch.full((3,), 2.0))

    torch.testing.assert_close(merged, 2 * pcb(taus))


def test_the_competition_is_over_the_whole_model():
    taus = torch.randn(3, 900, generator=torch.Generator().manual_seed(0))
    taus[:, :300] *= 0.01
    tensors = taus.split(300, dim=1)
    statistic = first_pass(lambda: tensors)

    small, *others = [pcb(part, statistic=statistic) for part in tensors]

    torch.testing.assert_close(torch.cat([small, *others]), pcb(taus))
    assert small.count_nonzero() == 0


def test_many_experts_do_not_overflow():
    taus = torch.randn(100, 50, generator=torch.Generator().manual_seed(0))

    merged = pcb(taus)

    assert merged.isfinite().all()
    assert merged.count_nonzero() > 0


def test_experts_in_full_conflict_cancel():
    tau = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(pcb(torch.cat([tau, -tau])), torch.zeros(300))


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_outside_of_0_to_1_is_refused(density: float):
    with pytest.raises(UsageError, match="density"):
        pcb(torch.ones(2, 2), density=density)
