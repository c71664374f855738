import pytest
import torch

from momacli.methods.ties import TiesStatistic, first_pass, ties


def test_trimming_keeps_the_largest_share_of_each_task_vector():
    taus = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4]])

    merged = ties(taus, density=0.5)

    torch.testing.assert_close(merged, torch.tensor([4.0, 3.0, 0.3, 0.4]))


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_of_float64_as_many_entries_are_kept_as_of_float32(density):
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(20, 1, 64, dtype=torch.float64, generator=generator)

    kept = [int(torch.count_nonzero(ties(tau, density=density))) for tau in taus]

    assert kept == [64 * density] * 20


def test_entries_against_the_elected_sign_are_dropped_from_the_mean():
    taus = torch.tensor([[4.0, -1.0], [2.0, -3.0], [-1.0, 2.0]])

    merged = ties(taus, density=1.0)

    torch.testing.assert_close(merged, torch.tensor([3.0, -2.0]))


def test_the_sign_is_elected_by_total_magnitude_not_by_count():
    taus = torch.tensor([[5.0], [-1.0], [-1.0]])

    torch.testing.assert_close(ties(taus, density=1.0), torch.tensor([5.0]))


def test_a_sum_of_zero_takes_the_sign_of_the_majority():
    taus = torch.tensor([[1.0, -2.0, -2.0], [-1.0, -2.0, -2.0]])

    merged = ties(taus, density=1.0)

    torch.testing.assert_close(merged, torch.tensor([-1.0, -2.0, -2.0]))


def test_what_cancels_while_the_majority_is_negative_is_merged_like_its_negative_entries():
    taus = torch.tensor([[3.0, -2.0, -2.0], [-1.0, -2.0, -2.0], [-2.0, -2.0, -2.0]])

    merged = ties(taus, density=1.0)

    torch.testing.assert_close(merged, torch.tensor([-1.5, -2.0, -2.0]))


def test_the_majority_is_only_counted_where_entries_cancel():
    passes = []

    def stacks():
        passes.append("a pass")
        return [torch.tensor([[1.0, 2.0, 0.1, 0.3], [0.1, -1.0, 2.0, 0.2]])]

    statistic = first_pass(stacks, density=0.5)
    needed = len(passes)

    ties(*stacks(), density=0.5, statistic=statistic)

    assert len(passes) == needed + 1
    assert statistic.majority == 1
    assert len(passes) == needed + 2


def test_a_pass_over_all_blocks_finds_the_majority_that_a_pass_of_its_own_finds():
    taus = torch.randint(-3, 3, (4, 3000), generator=torch.Generator().manual_seed(0)).double()
    blocks = list(taus.split(700, dim=1))
    weights = torch.tensor([1.0, 1.0, 2.0, 0.5])
    counted, on_the_way = (
        first_pass(lambda: blocks, density=0.5, weights=weights.numpy()) for _ in range(2)
    )

    on_the_way.tally.begin()
    for block in blocks:
        ties(block, density=0.5, weights=weights, statistic=on_the_way)
    on_the_way.tally.settle()

    assert counted.majority == on_the_way.majority == -1


def test_the_sum_is_not_divided():
    taus = torch.tensor([[4.0, -1.0], [2.0, -3.0], [-1.0, 2.0]])

    merged = ties(taus, density=1.0, lam=0.5, aggregate="sum")

    torch.testing.assert_close(merged, torch.tensor([3.0, -2.0]))


def test_equal_magnitudes_at_the_threshold_are_all_kept():
    taus = torch.tensor([[1.0, -1.0, 1.0, 0.5]])

    merged = ties(taus, density=0.25)

    torch.testing.assert_close(merged, torch.tensor([1.0, -1.0, 1.0, 0.0]))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_a_tensor_merged_alone_equals_the_same_tensor_as_a_whole_model(density):
    taus = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    blocks = [taus[:, :7], taus[:, 7:]]
    statistic = first_pass(lambda: blocks, density=density)

    in_blocks = torch.cat([ties(block, density=density, statistic=statistic) for block in blocks])

    assert torch.equal(in_blocks, ties(taus, density=density))


def test_thresholds_are_of_each_expert_by_itself():
    taus = torch.tensor([[100.0, 50.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4]])

    statistic = first_pass(lambda: [taus], density=0.5)

    assert isinstance(statistic, TiesStatistic)
    assert statistic.thresholds.tolist() == pytest.approx([50.0, 0.3])
