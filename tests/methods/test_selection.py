import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momacli.methods._selection import count_to_keep, largest_magnitudes


@pytest.mark.parametrize(
    ("density", "size", "count"),
    [
        (0.2, 10, 2),
        (0.2, 9, 1),
        (0.01, 10, 1),
        (1.0, 10, 10),
        (2.0, 10, 10),
        (0.0, 10, 0),
        (0.5, 0, 0),
    ],
)
def test_a_density_keeps_its_share_and_at_least_one(density, size, count):
    assert count_to_keep(density, size) == count


@settings(deadline=None)  # the first example pays for torch
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1),
    density=st.floats(0.01, 1),
    cut=st.integers(0, 50),
)
def test_the_threshold_found_in_blocks_is_the_one_of_the_sorted_vector(values, density, cut):
    taus = torch.tensor([values, values[::-1]])
    blocks = [block for block in (taus[:, :cut], taus[:, cut:]) if block.shape[1]]

    found = largest_magnitudes(lambda: iter(blocks), density=density)

    keep = count_to_keep(density, len(values))
    expected = taus[0].abs().sort(descending=True).values[keep - 1]
    assert found.tolist() == [expected.item()] * 2


def test_nothing_kept_is_a_threshold_that_nothing_reaches():
    found = largest_magnitudes(lambda: [torch.ones(2, 3)], density=0.0)

    assert found.tolist() == [torch.inf, torch.inf]
