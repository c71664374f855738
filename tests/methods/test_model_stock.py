import math

import numpy as np
import pytest
import torch

from momacli.methods.model_stock import model_stock


def at_angle(degrees: float) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])


def test_two_experts_at_60_degrees_go_two_thirds_of_the_way_to_their_mean():
    taus = at_angle(60.0)

    merged = model_stock(taus)

    torch.testing.assert_close(merged, 2 / 3 * taus.mean(dim=0))  # 2 cos / (1 + cos), cos = 1/2


def test_two_equally_long_experts_and_the_base_have_the_merge_as_their_orthocenter():
    """The geometry of the paper: the experts' center lies at right angles above that point."""
    one, other = at_angle(75.0)

    merged = model_stock(torch.stack([one, other]))

    torch.testing.assert_close((merged - one) @ other, torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(merged @ (one - other), torch.tensor(0.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("degrees", [90.0, 120.0, 179.0, 180.0])
def test_experts_at_odds_leave_the_base_alone(degrees: float):
    merged = model_stock(at_angle(degrees))

    torch.testing.assert_close(merged, torch.zeros(2))


def test_experts_that_agree_give_their_mean():
    taus = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])

    torch.testing.assert_close(model_stock(taus), torch.tensor([2.0, 4.0]))


def test_cosines_are_averaged_not_angles():
    taus = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # cosines 1, 0, 0; angles 0, 90, 90

    merged = model_stock(taus)

    t = 3 * (1 / 3) / (1 + 2 * (1 / 3))  # 0.6; the mean angle of 60 degrees would give 0.75
    torch.testing.assert_close(merged, t * taus.mean(dim=0))


def test_one_expert_alone_stays_as_it_is():
    tau = torch.tensor([[1.0, -2.0]])

    torch.testing.assert_close(model_stock(tau), tau[0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_result_scales_with_the_task_vectors(scale: float):
    taus = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) + 1

    merged = model_stock(scale * taus)

    torch.testing.assert_close(merged / scale, model_stock(taus))


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_it_agrees_with_the_formula_written_in_numpy(per):
    taus = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)) + 0.3

    merged = model_stock(taus, per=per)

    rows = taus.numpy().astype(np.float64).reshape((4, 6, 5) if per == "row" else (4, 1, 30))
    expected = np.empty(rows.shape[1:])
    for r in range(rows.shape[1]):
        units = [row / np.linalg.norm(row) for row in rows[:, r]]
        cos = np.mean([units[i] @ units[j] for i in range(4) for j in range(i)])
        t = np.clip(4 * cos / (1 + 3 * cos), 0, 1) if cos > 0 else 0.0
        expected[r] = t * rows[:, r].mean(axis=0)
    np.testing.assert_allclose(merged.numpy(), expected.reshape(6, 5), rtol=1e-5, atol=1e-8)
