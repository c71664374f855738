import os
from dataclasses import replace

import pytest
import torch

from momacli.data.features import FeatureCache, Key, MergedCache, feature_key
from momacli.progress import Notice


@pytest.fixture
def features():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


KEY = Key("cats", 64 * "a")


def test_what_is_kept_is_found_again_bit_for_bit(tmp_path, features):
    cache = FeatureCache(tmp_path / "cache")
    cache.put(KEY, features)

    assert torch.equal(cache.get(KEY, 5), features)
    assert cache.get(replace(KEY, digest=64 * "b"), 5) is None
    assert cache.get(replace(KEY, task="dogs"), 5) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "nonsense"])
def test_a_damaged_entry_counts_as_missing_and_says_so(tmp_path, features, damage):
    events = []
    cache = FeatureCache(tmp_path, listener=events.append)
    cache.put(KEY, features)
    file = cache.path(KEY)
    content = file.read_bytes()
    file.write_bytes(
        {"cut": content[:-4], "changed": content[:-1] + b"\xff", "nonsense": b"nonsense" * 9}[
            damage
        ]
    )

    assert cache.get(KEY, 5) is None
    (event,) = events
    assert event == Notice(f"{file} is damaged; its features are computed again")


def test_an_entry_for_another_number_of_samples_is_not_used(tmp_path, features):
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features)

    assert cache.get(KEY, 6) is None


def test_a_cache_that_cannot_be_written_is_a_notice_and_no_failure(tmp_path, features):
    (tmp_path / "file").write_text("in the way")
    events = []

    FeatureCache(tmp_path / "file" / "cache", listener=events.append).put(KEY, features)

    assert [type(event) for event in events] == [Notice]


def test_features_of_merged_models_are_kept_for_the_latest_few_models_alone(tmp_path, features):
    common = FeatureCache(tmp_path)
    models = [MergedCache(common, {"file": str(number)}) for number in range(6)]
    common.put(KEY, features)
    for number, model in enumerate(models):
        model.put(KEY, features)
        os.utime(model.folder, ns=(number, number))  # clocks of file systems can be coarse

    found = [model.get(KEY, 5) is not None for model in models]

    assert found == [False, False, True, True, True, True]
    assert common.get(KEY, 5) is not None


def test_the_key_changes_with_weights_config_and_samples(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    key = feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path)

    assert feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path) == key
    assert feature_key({"model": "abd"}, {"size": 8}, [file], tmp_path) != key
    assert feature_key({"model": "abc"}, {"size": 9}, [file], tmp_path) != key
    file.write_bytes(b"12")
    assert feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path) != key


def test_features_of_what_has_changed_since_are_said_to_be_out_of_date(tmp_path, features):
    events = []
    cache = FeatureCache(tmp_path, listener=events.append)
    here = replace(KEY, place="here")
    cache.put(here, features)
    changed = replace(here, digest=64 * "b")

    assert cache.get(replace(changed, place="elsewhere"), 5) is None
    assert cache.get(replace(changed, task="dogs"), 5) is None
    assert events == []
    assert cache.get(changed, 5) is None
    (event,) = events
    assert "of cats that are kept are of other weights, samples or settings" in event.text
    assert cache.get(replace(here, place="moved"), 5) is not None


def test_half_the_size_is_rounded_alike_when_computed_and_when_found(tmp_path, features):
    half = FeatureCache(tmp_path / "half", dtype="float16")
    whole = FeatureCache(tmp_path / "whole")

    computed = half.put(KEY, features)
    assert torch.equal(computed, torch.from_numpy(features.numpy().astype("float16")).float())
    assert torch.equal(half.get(KEY, 5), computed)
    assert torch.equal(whole.put(KEY, features), features)
    sizes = [cache.path(KEY).stat().st_size for cache in (half, whole)]
    assert sizes[1] - sizes[0] >= 2 * features.numel() - 16  # headers are padded to 8 bytes


def test_types_do_not_take_each_others_entries(tmp_path, features):
    events = []
    half = FeatureCache(tmp_path, dtype="float16")
    whole = FeatureCache(tmp_path, listener=events.append)
    half.put(replace(KEY, place="here"), features)

    assert whole.get(replace(KEY, place="here"), 5) is None
    assert events == []


def test_features_too_large_for_float16_are_used_as_they_are_and_not_kept(tmp_path, features):
    events = []
    cache = FeatureCache(tmp_path, dtype="float16", listener=events.append)

    assert torch.equal(cache.put(KEY, features * 1e6), features * 1e6)
    assert cache.get(KEY, 5) is None
    assert [type(event) for event in events] == [Notice]


def test_the_use_of_a_cache_names_what_was_found_and_computed_and_its_size(tmp_path, features):
    FeatureCache(tmp_path).put(KEY, features)
    cache = FeatureCache(tmp_path)
    cache.get(KEY, 5)
    cache.put(Key("dogs/small", 64 * "c"), features)

    use = cache.use()
    assert (use.found, use.computed) == (("cats",), ("dogs/small",))
    assert use.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
