import pytest
import torch

from momacli.errors import UsageError
from momacli.methods._random_mask import Draws
from momacli.methods.average import average
from momacli.methods.dare import dare
from momacli.methods.task_arithmetic import task_arithmetic


def seeded(count: int, seed: int = 0) -> list[Draws]:
    return [Draws(f"{seed}/{t}") for t in range(count)]


def test_survivors_are_divided_by_the_share_that_survives():
    taus = torch.ones(1, 10_000)

    merged = dare(taus, draws=seeded(1), drop_rate=0.75)

    assert set(merged.tolist()) == {0.0, 4.0}  # 1 / (1 - 0.75)
    assert (merged == 0).float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_the_expectation_is_the_merge_without_drops():
    taus = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -0.5]])
    draws = 20_000
    many = taus[:, None, :].expand(2, draws, 3)

    merged = dare(many, draws=seeded(2), drop_rate=0.5)

    # an entry's mean over n draws is off by about |tau| sqrt(p / (1 - p) / n), here 0.02
    torch.testing.assert_close(merged.mean(dim=0), average(taus), rtol=0, atol=0.08)


def test_experts_lose_different_entries_and_a_seed_gives_the_same_ones_again():
    taus = torch.ones(2, 1000)

    merged = dare(taus, draws=seeded(2), drop_rate=0.5)

    assert set(merged.tolist()) == {0.0, 1.0, 2.0}
    assert torch.equal(merged, dare(taus, draws=seeded(2), drop_rate=0.5))
    assert not torch.equal(merged, dare(taus, draws=seeded(2, seed=1), drop_rate=0.5))


def test_dropping_nothing_leaves_the_merge_that_follows():
    taus = torch.tensor([[4.0, -1.0, 2.0], [2.0, -3.0, -1.0], [-1.0, 2.0, -1.0]])
    weights = torch.tensor([1.0, 2.0, 3.0])

    mean, total, elected = (
        dare(taus, draws=seeded(3), drop_rate=0.0, then=then, weights=given)
        for then, given in (("average", weights), ("task_arithmetic", weights), ("ties", None))
    )

    torch.testing.assert_close(mean, average(taus, weights=weights))
    torch.testing.assert_close(total, task_arithmetic(taus, weights=weights, lam=1.0))
    # signs +, - and, in the third column whose sum is 0, +
    torch.testing.assert_close(elected, torch.tensor([3.0, -2.0, 2.0]))


def test_ties_after_the_drop_elects_among_the_survivors_and_trims_nothing():
    taus = torch.tensor([[5.0, 0.01], [-1.0, 0.02]]).repeat_interleave(1000, dim=1)

    merged = dare(taus, draws=seeded(2), drop_rate=0.5, then="ties")

    # doubled survivors: both gone; one alone; or both, where the larger sum's sign wins
    assert sorted({round(x, 4) for x in merged[:1000].tolist()}) == [-2.0, 0.0, 10.0]
    assert sorted({round(x, 4) for x in merged[1000:].tolist()}) == [0.0, 0.02, 0.03, 0.04]


def test_without_rescaling_survivors_keep_their_size():
    merged = dare(torch.ones(1, 100), draws=seeded(1), drop_rate=0.9, rescale=False)

    assert set(merged.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("drop_rate", [-0.1, 1.0])
def test_a_drop_rate_outside_of_0_to_1_is_refused(drop_rate: float):
    with pytest.raises(UsageError, match="drop_rate"):
        dare(torch.ones(1, 2), draws=seeded(1), drop_rate=drop_rate)
