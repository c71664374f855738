import pytest
import torch

from momacli.alignment.alignment import alignment_of, write_alignment
from momacli.checkpoint.provenance import Input, Recipe
from momacli.comparing.pruning import lowest_dropped, prune
from momacli.errors import ConflictError


def masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(size, generator=generator) for name, size in (("a", 30), ("b", 70))}


def test_the_lowest_share_of_all_entries_together_becomes_zero_and_the_rest_stays():
    flat = torch.cat(list(masks().values()))
    order = flat.argsort()

    dropped = torch.cat(list(lowest_dropped(masks(), 0.4).values()))

    assert bool((dropped[order[:40]] == 0).all())
    assert torch.equal(dropped[order[40:]], flat[order[40:]])


def test_of_equal_entries_exactly_as_many_go_as_the_share_says():
    dropped = lowest_dropped({"a": torch.ones(2, 4), "b": torch.ones(2)}, 0.5)

    assert sum(int((mask == 0).sum()) for mask in dropped.values()) == 5
    assert dropped["a"].shape == (2, 4)


def test_nothing_and_everything_can_be_dropped():
    nothing, everything = lowest_dropped(masks(), 0.0), lowest_dropped(masks(), 1.0)

    assert all(torch.equal(nothing[name], mask) for name, mask in masks().items())
    assert all(not mask.any() for mask in everything.values())


def test_an_alignment_that_kept_no_mask_has_none_to_prune(tmp_path):
    place = tmp_path / "alignment.safetensors"
    recipe = Recipe(command="align", merged=Input("m", "merged", {"f": "0" * 64}))
    unmasked = alignment_of(
        {"cats": torch.eye(2)}, {}, headroom=1.0, layer="head", recipe=recipe, place=place
    )
    write_alignment(place, unmasked, {})

    with pytest.raises(ConflictError, match="has no mask"):
        prune(place, tmp_path / "pruned.safetensors", 0.5)
    assert not (tmp_path / "pruned.safetensors").exists()
