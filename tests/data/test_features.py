import os

import pytest
import torch

from momacli.data.features import FeatureCache, MergedCache, feature_key
from momacli.progress import Notice


@pytest.fixture
def features():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_what_is_kept_is_found_again_bit_for_bit(tmp_path, features):
    cache = FeatureCache(tmp_path / "cache")
    cache.put("key", features)

    assert torch.equal(cache.get("key", 5), features)
    assert cache.get("other", 5) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "nonsense"])
def test_a_damaged_entry_counts_as_missing_and_says_so(tmp_path, features, damage):
    events = []
    cache = FeatureCache(tmp_path, listener=events.append)
    cache.put("key", features)
    file = tmp_path / "key.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        {"cut": content[:-4], "changed": content[:-1] + b"\xff", "nonsense": b"nonsense" * 9}[
            damage
        ]
    )

    assert cache.get("key", 5) is None
    assert [type(event) for event in events] == [Notice]


def test_an_entry_for_another_number_of_samples_is_not_used(tmp_path, features):
    cache = FeatureCache(tmp_path)
    cache.put("key", features)

    assert cache.get("key", 6) is None


def test_a_cache_that_cannot_be_written_is_a_notice_and_no_failure(tmp_path, features):
    (tmp_path / "file").write_text("in the way")
    events = []

    FeatureCache(tmp_path / "file" / "cache", listener=events.append).put("key", features)

    assert [type(event) for event in events] == [Notice]


def test_features_of_merged_models_are_kept_for_the_latest_few_models_alone(tmp_path, features):
    common = FeatureCache(tmp_path)
    models = [MergedCache(common, {"file": str(number)}) for number in range(6)]
    common.put("expert", features)
    for number, model in enumerate(models):
        model.put("key", features)
        os.utime(model.folder, ns=(number, number))  # clocks of file systems can be coarse

    found = [model.get("key", 5) is not None for model in models]

    assert found == [False, False, True, True, True, True]
    assert common.get("expert", 5) is not None


def test_the_key_changes_with_weights_config_and_samples(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"1")
    key = feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path)

    assert feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path) == key
    assert feature_key({"model": "abd"}, {"size": 8}, [file], tmp_path) != key
    assert feature_key({"model": "abc"}, {"size": 9}, [file], tmp_path) != key
    file.write_bytes(b"12")
    assert feature_key({"model": "abc"}, {"size": 8}, [file], tmp_path) != key
