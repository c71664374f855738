import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momacli.methods import _selection
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


class Sampling:
    """Stacks of a few blocks with a sample; counts how often they are read in full."""

    def __init__(self, taus: torch.Tensor, sample: torch.Tensor):
        self.blocks, self.places, self.passes = taus.split(5000, dim=1), sample, 0

    def __call__(self):
        self.passes += 1
        return iter(self.blocks)

    def sample(self):
        return iter([self.places])


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["even", "misleading", "empty"])
def test_a_sample_saves_a_pass_and_never_changes_the_threshold(density, kind):
    taus = torch.randn(3, 60_000, generator=torch.Generator().manual_seed(0))
    samples = {"even": taus[:, ::2], "misleading": 100 + taus[:, :50], "empty": taus[:, :0]}
    stacks = Sampling(taus, samples[kind])

    found = largest_magnitudes(stacks, density=density)

    keep = count_to_keep(density, taus.shape[1])
    expected = taus.abs().sort(dim=1, descending=True).values[:, keep - 1]
    assert found.tolist() == expected.tolist()
    if kind == "even" and density in (0.2, 0.5):
        assert stacks.passes == 1


def test_few_bins_take_more_passes_to_the_same_threshold(monkeypatch):
    monkeypatch.setattr(_selection, "_COUNTERS", 64)
    taus = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))

    found = largest_magnitudes(lambda: taus.split(700, dim=1), density=0.1)

    assert found.tolist() == taus.abs().sort(dim=1).values[:, -300].tolist()
