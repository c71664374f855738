import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import entry, open_files, raw
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.checkpoint import hashed_file, hashing
from momacli.checkpoint.reader import Checkpoint, iterate_blocks, matches, task_name
from momacli.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def models() -> dict[str, Tensor]:
    """Tensors of every type that the safetensors library writes, with a scalar and an empty one."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (48,), generator=generator, dtype=torch.uint8)
    kinds = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8"
    kinds += " complex64 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
    tensors = {kind: values.view(getattr(torch, kind)).reshape(2, -1) for kind in kinds.split()}
    tensors["bool"] = values > 127
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.empty(3, 0, 2)
    return {name: value.clone() for name, value in tensors.items()}


def same_bits(one: Tensor, two: Tensor) -> bool:
    flat = [value.contiguous().reshape(-1).view(torch.uint8) for value in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(*flat)


def sharded(folder: Path, shards: dict[str, dict[str, Tensor]]) -> Path:
    """Write a sharded folder as `transformers` does."""
    folder.mkdir()
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    table = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


TWO_SHARDS = {
    "model-00001-of-00002.safetensors": {"a": torch.arange(4.0), "b": torch.arange(2.0)},
    "model-00002-of-00002.safetensors": {"c": torch.arange(3.0)},
}


def test_every_type_is_read_bit_by_bit_as_the_safetensors_library_reads_it(tmp_path: Path):
    save_file(models(), tmp_path / "m.safetensors")
    expected = load_file(tmp_path / "m.safetensors")

    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint:
        found = {key: checkpoint.read(key) for key in checkpoint.entries}

    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert same_bits(value, expected[key]), key


@pytest.mark.parametrize("block", [1, 5, 7, 1000])
def test_ranges_put_together_are_the_tensor(block: int, tmp_path: Path):
    save_file(models(), tmp_path / "m.safetensors")

    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint:
        for key, spec in checkpoint.entries.items():
            ranges = iterate_blocks(spec.elements, block)
            parts = [checkpoint.read_range(key, start, stop) for start, stop in ranges]
            whole = checkpoint.read(key)
            joined = torch.cat([part.view(torch.uint8) for part in parts]) if parts else whole
            assert torch.equal(joined.view(-1), whole.reshape(-1).view(torch.uint8))


def test_a_tensor_read_in_parts_is_the_whole_and_no_part_is_large(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("momacli.checkpoint.reader._PART", 5)
    values = torch.arange(24).reshape(4, 6).to(torch.bfloat16)
    save_file(
        {"a": values, "one": torch.tensor(3), "none": torch.ones(0, 2)}, tmp_path / "x.safetensors"
    )

    with Checkpoint.open(tmp_path / "x.safetensors") as checkpoint:
        parts = {name: list(checkpoint.read_in_parts(name)) for name in checkpoint.entries}

    assert [len(part) for part in parts["a"]] == [5, 5, 5, 5, 4]
    assert (
        b"".join(part.tobytes() for part in parts["a"])
        == values.view(torch.int16).numpy().tobytes()
    )
    assert [part.tolist() for part in parts["one"]] == [[3]]
    assert parts["none"] == []


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_a_range_outside_the_tensor_never_reads_its_neighbor(start: int, stop: int, tmp_path: Path):
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, tmp_path / "m.safetensors")

    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint, pytest.raises(IndexError):
        checkpoint.read_range("a", start, stop)


def test_elements_of_four_and_six_bits_come_as_their_bytes(tmp_path: Path):
    header = {
        "six": entry("F6_E2M3", [2, 2], [0, 3]),
        "four": entry("F4", [4], [3, 5]),
    }
    (tmp_path / "m.safetensors").write_bytes(raw(header, bytes([1, 2, 3, 4, 5])))

    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.read("six").tolist() == [1, 2, 3]
        assert checkpoint.read("four").tolist() == [4, 5]
        with pytest.raises(CheckpointError, match=r"tensor four of .*m\.safetensors has dtype F4"):
            checkpoint.read_range("four", 0, 1)


def test_what_is_read_is_the_callers_own(tmp_path: Path):
    save_file({"a": torch.zeros(4)}, tmp_path / "m.safetensors")

    with Checkpoint.open(tmp_path / "m.safetensors") as checkpoint:
        checkpoint.read("a").add_(1)

        assert checkpoint.read("a").sum() == 0
    assert load_file(tmp_path / "m.safetensors")["a"].sum() == 0


def test_a_tensor_larger_than_memory_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 8 EiB")

    save_file({"a.weight": torch.zeros(4)}, tmp_path / "huge.safetensors")
    with Checkpoint.open(tmp_path / "huge.safetensors") as checkpoint:
        monkeypatch.setattr(np, "empty", fail)

        with pytest.raises(CheckpointError, match=r"a\.weight of .*huge\.safetensors does not fit"):
            checkpoint.read("a.weight")


# hashing


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_hash_is_that_of_the_file_in_whatever_order_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.getbasetemp() / "hash.safetensors"
    tensors = {name: torch.randn(64) for name in "abcdef"}
    save_file(tensors, path)
    ranges = st.tuples(st.sampled_from("abcdef"), st.integers(0, 64), st.integers(0, 64))
    with pytest.MonkeyPatch.context() as patch, Checkpoint.open(path) as checkpoint:
        patch.setattr(hashed_file, "_GAP", data.draw(st.sampled_from([0, 300, 1 << 26])))
        patch.setattr(hashing, "_LARGEST", data.draw(st.sampled_from([0, 100, 1 << 24])))
        patch.setattr(hashing, "_PENDING", data.draw(st.sampled_from([1, 4])))
        if data.draw(st.booleans()):
            checkpoint.start_hash()
        for key, one, two in data.draw(st.lists(ranges, max_size=12)):
            checkpoint.read_range(key, min(one, two), max(one, two)).zero_()

        found = checkpoint.sha256()

    assert found == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("order", ["abc", "cba", "bca", "c", ""])
def test_what_passes_in_order_is_not_read_twice(
    order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "m.safetensors"
    save_file({name: torch.randn(1 << 10) for name in "abc"}, path)
    counted = []
    read_into = hashed_file.Source.read_into
    monkeypatch.setattr(
        hashed_file.Source,
        "read_into",
        lambda self, buffer, offset: (
            counted.append(len(buffer)),
            read_into(self, buffer, offset),
        ),
    )
    with Checkpoint.open(path) as checkpoint:
        checkpoint.start_hash()
        for key in order:
            checkpoint.read(key)

        checkpoint.sha256()

    overhead = 512 + 2 * checkpoint.files[0].header.data_start
    again = {"abc": 0, "cba": 2, "bca": 1, "c": 0, "": 0}[order]  # tensors
    assert sum(counted) <= path.stat().st_size + overhead + again * (4 << 10)


def test_a_file_changed_before_its_hash_is_complete_is_an_error(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, path)
    os.utime(path, ns=(0, 0))

    with Checkpoint.open(path) as checkpoint:
        checkpoint.start_hash()
        checkpoint.read("a")
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")

        with pytest.raises(CheckpointError, match=r"m\.safetensors changed while it was read"):
            checkpoint.sha256()


def test_closing_ends_the_thread_that_hashes(tmp_path: Path):
    import threading

    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    with Checkpoint.open(path) as checkpoint:
        checkpoint.start_hash()
        checkpoint.read("a")

    assert not [one for one in threading.enumerate() if one.name.startswith("sha256")]


# folders


def test_a_sharded_folder_is_one_checkpoint(tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)

    with Checkpoint.open(folder) as checkpoint:
        assert checkpoint.name == "sst2"
        assert checkpoint.is_folder
        assert list(checkpoint.entries) == ["a", "b", "c"]
        assert checkpoint.read("c").tolist() == [0, 1, 2]
        assert checkpoint.sha256().keys() == TWO_SHARDS.keys()


def test_the_links_of_a_download_cache_are_followed_however_they_lead(tmp_path: Path):
    """Names are judged, not where they lead."""
    sharded(tmp_path / "written", TWO_SHARDS)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "4d7a"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "written").iterdir())):
        file.rename(blobs / f"{number:064}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064}")

    with Checkpoint.open(snapshot) as checkpoint:
        assert checkpoint.read("c").tolist() == [0, 1, 2]


def test_where_a_folder_holds_both_kinds_what_from_pretrained_loads_counts(tmp_path: Path):
    folder = sharded(tmp_path / "both", TWO_SHARDS)
    save_file({"single": torch.zeros(1)}, folder / "model.safetensors")

    with Checkpoint.open(folder) as checkpoint:
        assert list(checkpoint.entries) == ["single"]


def test_the_only_weights_of_a_folder_are_taken_whatever_they_are_called(tmp_path: Path):
    save_file({"a": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")

    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.entries) == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "../base/model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "./model.safetensors",
        "..",
        ".",
        "",
        "..\\model.safetensors",
        "C:model.safetensors",
        "C:\\model.safetensors",
        "\\\\server\\share",
        "model\0.safetensors",
        "model\n.safetensors",
        "\ud800",
        None,
        7,
        ["model.safetensors"],
        {},
    ],
)
def test_an_index_may_only_give_plain_names_of_files_beside_it(name: object, tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.weight": name}}))

    with pytest.raises(CheckpointError, match="names what is no file beside it") as caught:
        Checkpoint.open(folder)

    assert str(folder / INDEX) in caught.value.message
    assert "a.weight" in caught.value.details[0]
    assert caught.value.details[0].isprintable()


def map_of(**table: str) -> str:
    return json.dumps({"weight_map": table})


ONE, OTHER = TWO_SHARDS
BROKEN_INDEXES: dict[str, tuple[str, list[str]]] = {
    "no JSON": ("{", ["not valid JSON"]),
    "not UTF-8": ("\udcff", ["not valid JSON"]),
    "deep": ("[" * 10**5, ["not valid JSON"]),
    "a list": ("[]", ["no weight_map"]),
    "no map": ("{}", ["no weight_map"]),
    "an empty map": (map_of(), ["no weight_map"]),
    "a map that is a list": ('{"weight_map":["a"]}', ["no weight_map"]),
    "a name twice": (f'{{"weight_map":{{"a":"{ONE}","a":"{OTHER}"}}}}', ["a twice"]),
    "a missing shard": (map_of(a="gone.safetensors"), ["1 of 1", "gone.safetensors"]),
    "a tensor in the other shard": (
        map_of(a=ONE, b=OTHER, c=OTHER),
        ["does not match", f"b: expected in {OTHER}, found {ONE}"],
    ),
    "a tensor in no shard": (
        map_of(a=ONE, b=ONE, c=OTHER, d=OTHER),
        ["does not match", "d: expected in", "nowhere"],
    ),
    "a tensor too few": (map_of(a=ONE, c=OTHER), ["does not match", "b: not in the index"]),
}


@pytest.mark.parametrize(("text", "phrases"), BROKEN_INDEXES.values(), ids=BROKEN_INDEXES.keys())
def test_a_broken_index_is_an_error_that_names_it(text: str, phrases: list[str], tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    (folder / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)

    assert str(folder / INDEX) in caught.value.message
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_an_index_too_large_to_be_one_is_not_read(tmp_path: Path):
    (tmp_path / INDEX).touch()
    os.truncate(tmp_path / INDEX, 1 << 40)

    with pytest.raises(CheckpointError, match="too large"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_shard_that_is_no_file_is_refused_without_waiting(
    make: Callable[[Path], None], tmp_path: Path
):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    (folder / OTHER).unlink()
    make(folder / OTHER)

    with pytest.raises(CheckpointError, match="expected a regular file"):
        Checkpoint.open(folder)


def test_all_tensors_that_two_shards_hold_are_listed(tmp_path: Path):
    same = {"a": torch.zeros(1), "b": torch.zeros(1)}
    folder = sharded(tmp_path / "sst2", {ONE: {**same, "c": torch.zeros(1)}, OTHER: same})

    with pytest.raises(CheckpointError, match="more than one") as caught:
        Checkpoint.open(folder)

    assert caught.value.details == (f"a: in {ONE} and in {OTHER}", f"b: in {ONE} and in {OTHER}")


def test_a_shard_under_two_names_is_not_counted_twice(tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    (folder / "again.safetensors").symlink_to(ONE)
    (folder / INDEX).write_text(map_of(a=ONE, b="again.safetensors", c=OTHER))

    with pytest.raises(CheckpointError, match="more than one of its files"):
        Checkpoint.open(folder)


def test_a_damaged_shard_is_the_one_that_is_named(tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    os.truncate(folder / OTHER, (folder / OTHER).stat().st_size - 1)

    with pytest.raises(CheckpointError, match=rf"{OTHER} .* cut off in tensor c"):
        Checkpoint.open(folder)


def test_a_folder_of_pickles_says_that_they_are_by_their_content(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.data")
    (tmp_path / "notes.bin").write_text("no pickle")
    os.mkfifo(tmp_path / "pipe.bin")

    with pytest.raises(CheckpointError, match=r"weights\.data is a pickle"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("names", [[], ["one.safetensors", "two.safetensors"]])
def test_a_folder_without_weights_or_with_several_says_what_was_looked_for(
    names: list[str], tmp_path: Path
):
    for name in names:
        save_file({"a": torch.zeros(1)}, tmp_path / name)

    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors") as caught:
        Checkpoint.open(tmp_path)

    assert list(caught.value.details) == names


def test_nothing_stays_open_when_a_folder_is_refused(tmp_path: Path):
    folder = sharded(tmp_path / "sst2", TWO_SHARDS)
    (folder / OTHER).write_bytes(b"damaged")
    before = open_files()

    for _ in range(5):
        with pytest.raises(CheckpointError):
            Checkpoint.open(folder)

    assert open_files() == before


# names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/sst2.safetensors", "sst2"),
        ("models/sst2/", "sst2"),
        ("models/v1.5", "v1.5"),
        ("models/a.safetensors.safetensors", "a.safetensors"),
    ],
)
def test_a_task_is_named_after_its_file_or_folder(path: str, name: str):
    assert task_name(Path(path)) == name


def test_a_dot_stands_for_the_folder_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path / "sst2")

    assert task_name(Path()) == "sst2"
    assert task_name(Path("..")) == tmp_path.name


def test_patterns_match_whole_names_and_their_case():
    assert matches("head.weight", ["head.*"])
    assert matches("a\nhead", ["a*"])
    assert matches("head.dense.weight", ["head"])  # a module: all that is in it
    assert not matches("header.weight", ["head"])
    assert not matches("my.head.weight", ["head.*"])
    assert not matches("Head.weight", ["head.*"])
    assert not matches("head.weight", [])
