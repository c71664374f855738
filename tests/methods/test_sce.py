import numpy as np
import pytest
import torch

from momacli.errors import UsageError
from momacli.methods.sce import sce


def test_select_calculate_erase_by_hand():
    taus = torch.tensor([[3.0, 1.0, -2.0, 0.5], [1.0, 1.0, 4.0, 0.5]])

    merged = sce(taus, density=1.0)

    # squares: 9 + 1 + 4 + .25 = 14.25 and 1 + 1 + 16 + .25 = 18.25; -2 is against the sign of 2
    first = (14.25 * 3 + 18.25 * 1) / 32.5
    torch.testing.assert_close(merged, torch.tensor([first, 1.0, 4.0, 0.5]))


def test_only_the_entries_that_vary_most_are_selected():
    taus = torch.tensor([[3.0, 1.0, -2.0, 5.0], [1.0, 1.0, 4.0, 5.1]])

    merged = sce(taus, density=0.5)

    # three entries vary, by 1, 9 and .0025: half of three, rounded down, is one
    torch.testing.assert_close(merged, torch.tensor([0.0, 0.0, 4.0, 0.0]))


@pytest.mark.parametrize("taus", [[[1.0, -2.0]], [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]])
def test_experts_that_do_not_vary_are_kept_as_they_are(taus):
    merged = sce(torch.tensor(taus), density=0.1)

    torch.testing.assert_close(merged, torch.tensor(taus[0]))


def test_a_tensor_too_small_for_the_density_keeps_its_most_varying_entry():
    merged = sce(torch.tensor([[1.0, 2.0], [1.5, 4.0]]), density=0.1)

    assert merged[0] == 0
    assert merged[1] > 0


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_it_agrees_with_the_definition_in_numpy_at_any_scale(density: float, scale: float):
    """Mean squares of real fine-tuning are about 1e-8: no constant may swallow them."""
    taus = scale * torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(0))
    taus = taus * torch.tensor([1.0, 3.0, 0.2])[:, None, None]

    merged = sce(taus, density=density)

    tau = taus.numpy().astype(np.float64)
    variance = tau.var(axis=0)
    selected = tau * (variance >= np.sort(variance.reshape(-1))[::-1][int(density * 80) - 1])
    eta = np.square(selected).sum(axis=(1, 2), keepdims=True)
    w = eta * (selected * np.where(selected.sum(axis=0) >= 0, 1, -1) > 0)
    total = w.sum(axis=0)
    expected = np.divide((w * selected).sum(axis=0), total, where=total > 0, out=0 * total)
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_outside_of_0_to_1_is_refused(density: float):
    with pytest.raises(UsageError, match="density"):
        sce(torch.ones(2, 2), density=density)
