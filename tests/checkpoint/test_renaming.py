import pytest
import torch
from safetensors.torch import save_file

from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.renaming import RenamedCheckpoint, common_prefix, under_names_of

PLAIN = ("embeddings.word.weight", "layer.0.dense.weight", "layer.0.dense.bias", "norm.weight")
WRAPPED = tuple(f"bert.{name}" for name in PLAIN)


def opened(folder, names) -> Checkpoint:
    save_file(
        {name: torch.tensor([float(n)]) for n, name in enumerate(names)}, folder / "x.safetensors"
    )
    return Checkpoint.open(folder / "x.safetensors")


@pytest.mark.parametrize(
    ("names", "wanted", "prefix"),
    [
        (PLAIN, WRAPPED, "+bert."),
        (WRAPPED, PLAIN, "-bert."),
        (("module.a.x.weight", "module.a.y.weight"), ("a.x.weight", "a.y.weight"), "-module."),
        (PLAIN, PLAIN, ""),
        (PLAIN, ("other.weight",), ""),
        (PLAIN, (*WRAPPED, "classifier.weight"), "+bert."),
        ((), WRAPPED, ""),
        (PLAIN, (), ""),
    ],
)  # fmt: skip
def test_the_prefix_by_which_names_differ_is_found(names, wanted, prefix):
    assert common_prefix(names, wanted) == prefix


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_gamma_and_beta_of_berts_first_files_go_by_the_names_of_today_and_back(tmp_path, prefix):
    rest = ("embeddings.word.weight", "layer.0.dense.weight", "layer.0.dense.bias")
    old = (*rest, "layer.0.LayerNorm.gamma", "layer.0.LayerNorm.beta")
    new = (*rest, "layer.0.LayerNorm.weight", "layer.0.LayerNorm.bias")
    for own, wanted in ((old, new), (new, old)):
        folder = tmp_path / own[-1]
        folder.mkdir()
        with opened(folder, own) as checkpoint:
            found = under_names_of(checkpoint, [prefix + name for name in wanted])

            assert isinstance(found, RenamedCheckpoint)
            assert set(found.entries) == {prefix + name for name in wanted}
            assert found.read(prefix + wanted[-1]) == checkpoint.read(own[-1])
            assert "LayerNorm" in found.change
            assert under_names_of(checkpoint, own) is checkpoint


def test_a_prefix_that_could_be_one_of_two_is_none():
    both = [*(f"a.{name}" for name in PLAIN), *(f"b.{name}" for name in PLAIN)]

    assert common_prefix(PLAIN, both) == ""


def test_thousands_of_names_with_one_ending_are_matched_at_once():
    """Pair by pair it would take minutes; a header holds a million such names."""
    names = [f"{number}.a.weight" for number in range(20_000)]

    assert common_prefix(names, [f"model.{name}" for name in names]) == "+model."
    assert common_prefix(names, [f"m{name}" for name in names]) == ""


def test_tensors_are_read_under_their_new_names(tmp_path):
    with opened(tmp_path, PLAIN) as checkpoint:
        renamed = under_names_of(checkpoint, WRAPPED)

        assert isinstance(renamed, RenamedCheckpoint)
        assert renamed.change == "'bert.' is put before the names of 4 tensors"
        assert set(renamed.entries) == set(WRAPPED)
        for number, name in enumerate(WRAPPED):
            assert renamed.read(name).item() == number
            assert renamed.entries[name].name == name
        assert renamed.sha256() == checkpoint.sha256()


def test_what_the_others_lack_within_a_renamed_part_is_renamed_too(tmp_path):
    names = (*PLAIN, "layer.7.extra.weight", "lm_head.weight")
    with opened(tmp_path, names) as checkpoint:
        renamed = under_names_of(checkpoint, WRAPPED)

    assert set(renamed.entries) - set(WRAPPED) == {"bert.layer.7.extra.weight", "lm_head.weight"}


def test_names_that_match_already_stay(tmp_path):
    with opened(tmp_path, WRAPPED) as checkpoint:
        assert under_names_of(checkpoint, [*WRAPPED, "classifier.weight"]) is checkpoint
