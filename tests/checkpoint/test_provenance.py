import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from momacli.checkpoint.provenance import (
    KEY,
    Input,
    Recipe,
    check_unchanged,
    decode_recipe,
    input_path,
    open_input,
    record_input,
)
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import CheckpointError, ConflictError

DIGEST = "4d" * 32
RECIPE = Recipe(
    command="merge",
    parameters={"method": "ties", "density": 0.2},
    base=Input("base", "../base", {"model.safetensors": DIGEST}),
    inputs=(
        Input("birds", "../birds.safetensors", {"birds.safetensors": DIGEST}, task_vector=True),
    ),
    heads=("classifier.weight",),
    tasks=("birds",),
    configs={"birds": {"id2label": {"0": "gull"}}},
)
OUTPUT = Path("merged.safetensors")


def write(path: Path, value: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.full((3,), value)}, path)
    return path


def recorded(path: Path, output: Path) -> Input:
    with Checkpoint.open(path) as checkpoint:
        return record_input(checkpoint, output, digests=True)


def test_a_recipe_comes_back_from_its_text():
    found = decode_recipe({KEY: RECIPE.encode()}, OUTPUT)

    assert found == replace(RECIPE, tool=found.tool if found else "")


def test_metadata_without_a_recipe_gives_none():
    assert decode_recipe({"format": "pt"}, OUTPUT) is None


def test_a_recipe_is_ascii_and_survives_a_path_that_is_no_text():
    odd = Input("birds", os.fsdecode(b"../caf\xe9"), {"ü.safetensors": DIGEST})

    text = replace(RECIPE, base=odd).encode()

    assert text.isascii()
    found = decode_recipe({KEY: text}, OUTPUT)
    assert found is not None
    assert found.base == odd


def test_placeholders_are_as_long_as_the_digests(tmp_path: Path):
    path = write(tmp_path / "birds.safetensors")
    with Checkpoint.open(path) as checkpoint:
        before = record_input(checkpoint, OUTPUT, digests=False)
        after = record_input(checkpoint, OUTPUT, digests=True)

    assert before != after
    assert len(replace(RECIPE, base=before).encode()) == len(replace(RECIPE, base=after).encode())


def put(*keys: str | int, value: object) -> Callable[[Any], None]:
    """Put a value at a place in the recipe."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def remove(key: str) -> Callable[[Any], None]:
    return lambda content: content.pop(key)


FIELDS = json.loads(RECIPE.encode()).keys()
DAMAGES = {
    **{f"no {field}": remove(field) for field in FIELDS},
    **{f"{field} is a number": put(field, value=7) for field in FIELDS},
    "inputs of numbers": put("inputs", value=[7]),
    "inputs as a text": put("inputs", value="birds"),
    "input without files": put("inputs", 0, "files", value={}),
    "files as a list": put("inputs", 0, "files", value=["birds.safetensors"]),
    "a digest that is none": put("inputs", 0, "files", "birds.safetensors", value="4d7a"),
    "a digest of null": put("base", "files", "model.safetensors", value=None),
    "a path of null": put("base", "path", value=None),
    "a flag that is a text": put("base", "task_vector", value="no"),
    "tasks as a text": put("tasks", value="birds"),
    "tasks of numbers": put("tasks", value=[1]),
    "a task outside the folder": put("tasks", value=["../../birds"]),
    "a task at the root": put("tasks", value=["/etc"]),
    "a task of control characters": put("tasks", value=["birds\x1b[2J"]),
    "a task of half a character": put("tasks", value=["\ud800"]),
    "a hidden task": put("tasks", value=[".ssh"]),
    "a task without a name": put("tasks", value=[""]),
    "a config outside the folder": put("configs", value={"../birds": {}}),
    "a config that is a list": put("configs", value={"birds": []}),
    "heads as a text": put("heads", value="classifier.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_recipe_is_an_error_that_names_the_file(damage: Callable[[Any], None]):
    content = json.loads(RECIPE.encode())
    damage(content)

    with pytest.raises(CheckpointError, match=r"merged\.safetensors: its record .* understood"):
        decode_recipe({KEY: json.dumps(content)}, OUTPUT)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "7", "[" * 10**5, '{"a":' * 10**5, '{"tool":"","tool":""}']
)
def test_a_recipe_that_is_no_table_is_an_error_that_names_the_file(text: str):
    with pytest.raises(CheckpointError, match=r"merged\.safetensors"):
        decode_recipe({KEY: text}, OUTPUT)


def test_an_input_is_found_from_where_the_output_is_now(tmp_path: Path):
    """Moved together they still find each other."""
    item = recorded(write(tmp_path / "here" / "models" / "birds.safetensors"), tmp_path / "here/m")
    assert item.path == "models/birds.safetensors"
    (tmp_path / "here").rename(tmp_path / "there")

    with open_input(item, tmp_path / "there" / "m") as checkpoint:
        check_unchanged(item, checkpoint, tmp_path / "there" / "m")


def test_a_changed_input_is_an_error_that_names_it(tmp_path: Path):
    path, output = write(tmp_path / "birds.safetensors"), tmp_path / "merged.safetensors"
    item = recorded(path, output)
    write(path, 1.0)

    with Checkpoint.open(path) as checkpoint, pytest.raises(ConflictError) as caught:
        check_unchanged(item, checkpoint, output)

    assert f"{path} is not what {output} was made from" in caught.value.message
    assert caught.value.details[0].startswith("birds.safetensors: expected SHA-256 ")


@pytest.mark.parametrize("missing", ["found", "expected"])
def test_a_shard_more_or_less_is_a_change(missing: str, tmp_path: Path):
    path, output = write(tmp_path / "birds.safetensors"), tmp_path / "merged.safetensors"
    item = recorded(path, output)
    if missing == "found":
        item = replace(item, files={**item.files, "more.safetensors": DIGEST})
    else:
        item = replace(item, files={})

    with (
        Checkpoint.open(path) as checkpoint,
        pytest.raises(ConflictError, match=f"{missing} no such file"),
    ):
        check_unchanged(item, checkpoint, output)


def test_a_missing_input_is_an_error_that_names_output_and_input(tmp_path: Path):
    path, output = write(tmp_path / "birds.safetensors"), tmp_path / "merged.safetensors"
    item = recorded(path, output)
    path.unlink()

    with pytest.raises(CheckpointError, match=rf"{output} was made from birds, .*{path} does not"):
        open_input(item, output)


@pytest.mark.parametrize("place", ["/dev/zero", "a\0b", "x" * 5000, "."])
def test_a_path_from_a_strangers_recipe_is_opened_only_if_it_is_a_checkpoint(
    place: str, tmp_path: Path
):
    item = Input("base", place, {"model.safetensors": DIGEST})

    with pytest.raises(CheckpointError, match="was made from base"):
        open_input(item, tmp_path / "merged.safetensors")


def test_an_absolute_path_stands_for_itself():
    assert input_path(Input("base", "/models/base", {}), OUTPUT) == Path("/models/base")
