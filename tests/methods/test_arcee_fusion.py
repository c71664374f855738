import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.arcee_fusion import arcee_fusion


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_it_agrees_with_the_definition_in_numpy(size: float):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 50, generator=generator)
    tau = size * torch.randn(1, 12, 50, generator=generator)

    merged = arcee_fusion(tau, base=base)

    change, theta_0 = tau[0].numpy().astype(np.float64), base.numpy().astype(np.float64)
    p, q = softmax(theta_0 + change), softmax(theta_0)
    importance = np.abs(change) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    q1, median, q3 = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
    kept = importance >= median + 1.5 * (q3 - q1)
    assert 0 < kept.mean() < 0.3
    np.testing.assert_array_equal(merged.numpy(), np.where(kept, tau[0].numpy(), 0))


def test_a_row_that_changes_alone_is_the_one_that_is_kept():
    base = torch.arange(40.0).reshape(8, 5) / 10
    tau = torch.zeros(1, 8, 5)
    tau[0, 3, 1] = 0.5

    torch.testing.assert_close(arcee_fusion(tau, base=base), tau[0])


def test_more_than_one_expert_is_refused_with_a_way_out():
    with pytest.raises(UsageError, match="one expert") as refusal:
        arcee_fusion(torch.ones(2, 3), base=torch.ones(3))

    assert "merge the experts first" in str(refusal.value)
