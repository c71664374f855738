import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from momacli.checkpoint.multitask_writer import TaskPart, multitask_writer
from momacli.checkpoint.provenance import Recipe
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import OutputError

TASKS = ("birds", "cats")
ENCODER = [TensorSpec("encoder", "F32", (4,))]
PARTS = [TaskPart(task, [TensorSpec("head", "F32", (2,))], None) for task in TASKS]


def write(target: Path, *, as_folder: bool = True) -> None:
    """Write an encoder of ones and heads of twos."""
    recipe = Recipe(command="merge", tasks=TASKS)
    with multitask_writer(target, ENCODER, PARTS, recipe, as_folder=as_folder) as writer:
        writer.append("encoder", torch.ones(4))
        for task in TASKS:
            writer.append_head(task, "head", torch.full((2,), 2.0))


def shards(target: Path) -> list[os.stat_result]:
    return [(target / task / "model-00001-of-00002.safetensors").stat() for task in TASKS]


def test_the_encoder_of_all_tasks_is_one_file_on_disk(tmp_path: Path):
    write(tmp_path / "merged")

    assert len({status.st_ino for status in shards(tmp_path / "merged")}) == 1


def test_where_a_file_cannot_have_two_names_each_task_has_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)

    write(tmp_path / "merged")

    assert len({status.st_ino for status in shards(tmp_path / "merged")}) == 2
    for task in TASKS:
        with Checkpoint.open(tmp_path / "merged" / task) as checkpoint:
            assert checkpoint.read("encoder").tolist() == [1] * 4
            assert checkpoint.read("head").tolist() == [2] * 2


def test_the_heads_of_a_file_carry_their_task(tmp_path: Path):
    write(tmp_path / "merged.safetensors", as_folder=False)

    found = load_file(tmp_path / "merged.safetensors")
    assert found.keys() == {"encoder", "heads.birds.head", "heads.cats.head"}


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_output_without_all_its_values_is_never_there(as_folder: bool, tmp_path: Path):
    target = tmp_path / ("merged" if as_folder else "merged.safetensors")
    write(target, as_folder=as_folder)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    with (
        pytest.raises(ValueError, match="not written in full: encoder"),
        multitask_writer(target, ENCODER, [], Recipe("merge"), as_folder=as_folder),
    ):
        pass

    after = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert after == before


def test_a_companion_that_cannot_be_read_is_named(tmp_path: Path):
    def missing(path: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "birds/vocab.txt")

    with (
        pytest.raises(OutputError, match=r"merged cannot be written: .*birds/vocab\.txt"),
        multitask_writer(
            tmp_path / "merged",
            [],
            PARTS[:0],
            Recipe("merge"),
            as_folder=True,
            extras={"a": missing},
        ),
    ):
        pass

    assert list(tmp_path.iterdir()) == []
