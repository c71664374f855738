"""Inputs of a merge that are hashed side by side: the same records, in less time."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_files import entry, raw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.checkpoint import ahead, company, digests, hashed_file, joint_hash, side_by_side
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.source import Source
from momacli.compiled import sha256, sha256_instructions, sha256_vectors
from momacli.compiled.sha256 import compressor
from momacli.errors import CheckpointError, ConflictError
from momacli.merge import merge

FEWEST = side_by_side.fewest.__wrapped__
FASTER = side_by_side.lanes_are_faster.__wrapped__
"""Measured anew whenever it is asked."""

NAMES = ["base", *(f"t{number}" for number in range(8))]


@pytest.fixture(autouse=True)
def _small_files_count(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of any size are worth it, and a slow processor's lanes are taken, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp()))
    monkeypatch.setattr(side_by_side, "_WORTH_IT", 0)
    monkeypatch.setattr(side_by_side, "lanes_are_faster", lambda: True)
    monkeypatch.setattr(side_by_side, "fewest", lambda: 6)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed together."""
    names = list[str]()
    init = company.Company.__init__

    def noted(self: company.Company, files: Sequence[Checkpoint]) -> None:
        names.extend(file.path.stem for file in files)
        init(self, files)

    monkeypatch.setattr(company.Company, "__init__", noted)
    return names


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that are read of each file."""
    counted = dict[str, int]()
    read_into = Source.read_into

    def noted(self: Source, buffer: memoryview, offset: int) -> None:
        counted[self.path.stem] = counted.get(self.path.stem, 0) + len(buffer)
        read_into(self, buffer, offset)

    monkeypatch.setattr(Source, "read_into", noted)
    return counted


def tensors(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of a model, of sizes whose blocks begin and end anywhere, in disk order."""
    generator = torch.Generator().manual_seed(NAMES.index(name))
    shapes = {"a.weight": (300, 301), "b.bias": (13,), "c.weight": (70, 1001), "d.scale": ()}
    return {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}


def write(
    names: Sequence[str], make: Callable[[str], Mapping[str, Tensor]] = tensors
) -> list[Path]:
    for name in names:
        save_file(dict(make(name)), f"{name}.safetensors", metadata={"is": "x" * len(name)})
    return [Path(f"{name}.safetensors") for name in names]


def recorded(output: Path) -> dict[str, str]:
    """The digests of all inputs, by name of the file."""
    with safe_open(output, "pt") as opened:
        recipe = json.loads(opened.metadata()["moma"])
    return {
        file: digest
        for item in (recipe["base"], *recipe["inputs"])
        for file, digest in item["files"].items()
    }


def true_digests(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def merged(paths: Sequence[Path], method: str = "average", **options: Any) -> Path:
    return merge(
        paths[1:], base=paths[0], method=method, output="out.safetensors", force=True, **options
    ).output


@pytest.mark.parametrize("method", ["average", "ties", "dare"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_records_are_those_of_hashlib_and_no_byte_is_read_twice(method, dtype, joined, read):
    paths = write(NAMES, lambda name: tensors(name, dtype))

    digests_of_inputs = recorded(merged(paths, method))

    assert digests_of_inputs == true_digests(paths)
    assert len(joined) == len(NAMES)
    if method != "ties":  # which reads in a first pass
        for path in paths:
            assert read[path.stem] < path.stat().st_size + 2048  # of the header, twice


@pytest.mark.parametrize(("processors", "together"), [(1, 9), (2, 9), (3, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_tensors_are_read_in_step_where_there_are_few_processors(
    processors, together, dtype, joined, read, monkeypatch
):
    monkeypatch.setattr(ahead, "_processors", lambda: processors)
    monkeypatch.setattr(ahead, "_PIECE", 1000)
    paths = write(NAMES, lambda name: tensors(name, dtype))

    output = merged(paths, "breadcrumbs")

    assert recorded(output) == true_digests(paths)
    assert len(joined) == together
    assert all(read[path.stem] < path.stat().st_size + 2048 for path in paths)
    values = output.read_bytes()
    monkeypatch.setattr(ahead, "_processors", lambda: 9)
    assert merged(paths, "breadcrumbs").read_bytes() == values


def test_what_is_not_finite_is_named_where_whole_tensors_are_read_in_step(monkeypatch):
    def broken(name: str) -> dict[str, Tensor]:
        made = tensors(name)
        if name == "t6":
            made["c.weight"][69, 1000] = torch.nan
        return made

    monkeypatch.setattr(ahead, "_processors", lambda: 2)

    with pytest.raises(ConflictError, match=r"c\.weight holds NaN") as error:
        merged(write(NAMES, broken), "breadcrumbs")

    assert [Path(line).name for line in error.value.details] == ["t6.safetensors"]


@pytest.mark.parametrize("gap", [0, 1000, 1 << 26])
def test_heads_and_what_is_left_out_lie_between_and_are_hashed_too(gap, joined, read, monkeypatch):
    def with_head(name: str) -> dict[str, Tensor]:
        rows = 40 + NAMES.index(name)
        return {**tensors(name), "b.head": torch.randn(rows, 64), "c.left": torch.randn(99)}

    monkeypatch.setattr(hashed_file, "_GAP", gap)
    paths = write(NAMES, with_head)

    output = merged(paths, heads=["b.head"], exclude=["c.left"])

    assert recorded(output) == true_digests(paths)
    assert len(joined) == len(NAMES)


def test_a_file_in_another_order_is_hashed_as_it_lies(joined):
    paths = write(NAMES)
    turned = tensors("t3")
    parts = [turned[key].numpy().tobytes() for key in reversed(turned)]
    header, start = {}, 0
    for key, part in zip(reversed(turned), parts, strict=True):
        header[key] = entry("F32", list(turned[key].shape), [start, start + len(part)])
        start += len(part)
    expected = merged(paths).read_bytes()
    paths[4].write_bytes(raw(header, b"".join(parts)))

    output = merged(paths)

    assert recorded(output) == true_digests(paths)
    assert load_file(output).keys() == tensors("base").keys()
    assert output.read_bytes()[-100000:] == expected[-100000:]
    assert "t3" in joined


def test_task_vectors_and_shorter_vocabularies_are_hashed_beside_experts(joined):
    def embeddings(name: str) -> dict[str, Tensor]:
        rows = 500 - 8 * (NAMES.index(name) % 2)
        return {"model.embed_tokens.weight": torch.randn(rows, 64), "z": torch.randn(8)}

    paths = write(NAMES, embeddings)

    output = merged(paths, vocab="base")

    assert recorded(output) == true_digests(paths)
    assert len(joined) == len(NAMES)


def test_shards_of_one_number_are_hashed_together(joined):
    folders = []
    for name in NAMES[:7]:
        folder = Path(name)
        folder.mkdir()
        table = {}
        for number, part in enumerate("ab"):
            shard = f"model-{number}.safetensors"
            save_file({part: torch.randn(900, 7)}, folder / shard)
            table[part] = shard
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        folders.append(folder)

    output = merge(folders[1:], base=folders[0], method="average", output="out.safetensors").output

    assert joined == ["model-0"] * 7 + ["model-1"] * 7
    with safe_open(output, "pt") as opened:
        recipe = json.loads(opened.metadata()["moma"])
    for item, folder in zip((recipe["base"], *recipe["inputs"]), folders, strict=True):
        assert item["files"] == true_digests(sorted(folder.glob("*.safetensors")))


def test_the_output_has_the_same_bytes_whichever_way_its_inputs_are_hashed(joined, monkeypatch):
    paths = write(NAMES)
    side = merged(paths).read_bytes()
    monkeypatch.setattr(side_by_side, "lanes_are_faster", lambda: False)

    alone = merged(paths).read_bytes()

    assert side == alone
    assert len(joined) == len(NAMES)


@pytest.mark.parametrize("late", [1, 4])
def test_a_file_that_changes_during_the_run_is_named(late, joined, monkeypatch):
    paths = write(NAMES)
    for path in paths:
        os.utime(path, ns=(0, 0))
    read_into, reads = Source.read_into, []

    def write_meanwhile(self: Source, buffer: memoryview, offset: int) -> None:
        if joined and self.path.stem == "t5":
            reads.append(offset)
            if len(reads) == late:
                with self.path.open("r+b") as file:
                    file.seek(-1, os.SEEK_END)
                    file.write(b"\1")
        read_into(self, buffer, offset)

    monkeypatch.setattr(Source, "read_into", write_meanwhile)

    with pytest.raises(CheckpointError, match=r"t5\.safetensors changed while it was read"):
        merged(paths)

    assert not Path("out.safetensors").exists()


def test_a_file_cut_short_before_its_rest_is_hashed_is_named(joined):
    paths = write(NAMES)
    opened = [Checkpoint.open(path) for path in paths]
    side_by_side.start_hashes(opened, in_step=True)
    os.truncate(paths[2], 5000)

    with pytest.raises(CheckpointError, match=r"t1\.safetensors changed while it was read"):
        opened[5].sha256()

    for checkpoint in opened:
        checkpoint.close()


def test_what_is_read_out_of_order_is_left_for_later(joined, read, monkeypatch):
    monkeypatch.setattr(hashed_file, "_GAP", 0)
    paths = write(NAMES[:6], lambda name: {"a": torch.randn(9000), "b": torch.randn(100)})
    opened = [Checkpoint.open(path) for path in paths]
    side_by_side.start_hashes(opened, in_step=True)
    passing = hashed_file.Passing()
    for key, count in (("b", 100), ("a", 9000)):
        rows = [np.empty(count, dtype=np.float32) for _ in opened]
        for row, checkpoint in zip(rows, opened, strict=True):
            checkpoint.stored(key).read_to(row, 0, passing)
        passing.hash()

    found = [checkpoint.sha256() for checkpoint in opened]

    assert found == [true_digests([path]) for path in paths]
    assert all(read[path.stem] < path.stat().st_size + 400 + 2048 for path in paths)
    for checkpoint in opened:
        checkpoint.close()


def test_files_that_are_closed_are_not_waited_for(joined):
    paths = write(NAMES)
    opened = [Checkpoint.open(path) for path in paths]
    side_by_side.start_hashes(opened, in_step=True)
    for checkpoint in opened[:4]:
        checkpoint.close()

    found = [checkpoint.sha256() for checkpoint in opened[4:]]

    assert found == [true_digests([path]) for path in paths[4:]]


# where hashlib does it


def test_few_files_are_hashed_by_hashlib(joined):
    paths = write(NAMES[:5])

    assert recorded(merged(paths)) == true_digests(paths)
    assert joined == []


def test_six_files_fill_the_lanes_well_enough(joined):
    paths = write(NAMES[:6])

    assert recorded(merged(paths)) == true_digests(paths)
    assert sorted(joined) == sorted(NAMES[:6])


def test_two_files_fill_the_lanes_of_instructions(joined, monkeypatch):
    monkeypatch.setattr(side_by_side, "fewest", lambda: 2)
    paths = write(NAMES[:3])

    assert recorded(merged(paths)) == true_digests(paths)
    assert sorted(joined) == sorted(NAMES[:3])


@pytest.mark.parametrize(("way", "files"), [(sha256_instructions, 2), (sha256_vectors, 6)])
def test_as_many_files_are_hashed_side_by_side_as_pay_on_the_processor(way, files, monkeypatch):
    monkeypatch.setattr(sha256, "way", lambda: way)

    assert FEWEST() == files


def test_a_processor_that_is_not_known_hashes_many_files_side_by_side_at_most(monkeypatch):
    def fail() -> None:
        raise RuntimeError("LLVM: no such processor")

    monkeypatch.setattr(sha256, "way", fail)

    assert FEWEST() == 6


def test_small_files_are_not_worth_loading_the_code(joined, monkeypatch):
    paths = write(NAMES)
    monkeypatch.setattr(side_by_side, "_WORTH_IT", 1 + sum(path.stat().st_size for path in paths))

    assert recorded(merged(paths)) == true_digests(paths)
    assert joined == []


def test_files_of_other_sizes_are_left_out(joined):
    def sized(name: str) -> dict[str, Tensor]:
        head = torch.zeros(90000 if name in ("t0", "t1", "t2") else 0)
        return {**tensors(name), "head": head}

    paths = write(NAMES, lambda name: sized(name) if name != "base" else tensors(name))

    assert recorded(merged(paths, heads=["head"])) == true_digests(paths)
    assert sorted(joined) == ["base", "t3", "t4", "t5", "t6", "t7"]


def test_a_file_whose_digest_is_remembered_is_not_hashed(joined, tmp_path, monkeypatch):
    monkeypatch.setenv("MOMA_DIGESTS", str(tmp_path / "digests"))
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    paths = write(NAMES[:8])
    for path in paths[:2]:
        with Checkpoint.open(path) as checkpoint:
            checkpoint.sha256()

    assert recorded(merged(paths)) == true_digests(paths)
    assert sorted(joined) == sorted(NAMES[2:8])
    assert recorded(merged(paths)) == true_digests(paths)
    assert len(joined) == 6


@pytest.mark.parametrize("seconds", [1.0, 0.1])
def test_the_faster_way_is_chosen_on_each_processor(seconds, monkeypatch):
    taken = iter([seconds, 0.5] * side_by_side._TIMES)

    def timed(work: Callable[[], None]) -> float:
        work()
        return next(taken)

    monkeypatch.setattr(side_by_side, "_seconds", timed)

    assert FASTER() == (seconds < 0.5)


def test_lanes_that_come_to_something_else_are_not_taken(monkeypatch):
    taken = iter([0.1, 0.5] * side_by_side._TIMES)
    right = compressor()

    def broken(table: int, blocks: int) -> None:
        right.compress(table, blocks - 1)

    wrong = replace(right, compress=broken)
    monkeypatch.setattr(joint_hash, "compressor", lambda: wrong)
    monkeypatch.setattr(side_by_side, "_seconds", lambda work: (work(), next(taken))[1])

    assert not FASTER()


def test_where_the_code_cannot_be_compiled_hashlib_does_it(monkeypatch):
    def fail() -> None:
        raise RuntimeError("LLVM: no such processor")

    monkeypatch.setattr(joint_hash, "compressor", fail)

    assert not FASTER()
