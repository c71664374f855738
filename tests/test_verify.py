import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from momacli.absorb import absorb
from momacli.alignment.alignment import alignment_of, write_alignment
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.provenance import Recipe, record_input
from momacli.checkpoint.reader import Checkpoint
from momacli.cli.main import run
from momacli.errors import CheckpointError, ConflictError
from momacli.merge import merge
from momacli.merge_recipe import merge_recipe
from momacli.verify import verify

TASKS = ("cats", "dogs")


@pytest.fixture
def files(vit_files: Path, tmp_path: Path) -> Path:
    """A folder of bare files that may be written to."""
    return Path(shutil.copytree(vit_files, tmp_path / "files"))


@pytest.fixture
def merged(files: Path) -> Path:
    experts = [files / f"{task}.safetensors" for task in TASKS]
    output = files / "merged.safetensors"
    merge(experts, base=files / "base.safetensors", method="ties", output=output)
    return output


@pytest.fixture
def merged_folder(vit_folders: Path, tmp_path: Path) -> Path:
    output = tmp_path / "merged"
    merge([vit_folders / task for task in TASKS], base=vit_folders / "base", output=output)
    return output


def flip(file: Path, name: str) -> None:
    """Change one bit of a tensor's last byte in its place."""
    with Checkpoint.open(file) as opened:
        entry = opened.entries[name]
        position = entry.start + entry.nbytes - 1
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_merge_is_equal_to_what_its_recipe_makes(merged):
    report = verify(merged)

    assert report.equal
    assert report.first_difference is None
    assert report.tensors == len(load_file(merged))
    assert report.command == "merge"


def test_a_folder_of_models_is_verified_with_every_head(vit_folders, tmp_path):
    output = tmp_path / "merged"
    experts = [vit_folders / task for task in TASKS]
    merge(experts, base=vit_folders / "base", method="dare", seed=3, output=output)

    with MultiTask.open(output) as made:
        names = {(k if k.startswith("classifier") else "", k) for k in made.tasks["cats"].entries}
    assert verify(output).equal
    assert verify(output).tensors > len(names)  # those of two heads


def test_a_single_bit_is_found_and_its_tensor_named(merged):
    name = sorted(key for key in load_file(merged) if not key.startswith("heads."))[3]
    flip(merged, name)

    report = verify(merged)

    assert not report.equal
    assert report.first_difference is not None
    assert report.first_difference.startswith(f"{name}: element ")


def test_a_bit_of_one_tasks_copy_of_the_encoder_is_found(merged_folder):
    output = merged_folder
    shard = output / "dogs" / "model-00001-of-00002.safetensors"
    content = shard.read_bytes()
    shard.unlink()  # it was one file with that of the other task
    shard.write_bytes(content)
    with Checkpoint.open(shard) as opened:
        name = list(opened.entries)[-1]
    flip(shard, name)

    report = verify(output)

    assert (report.first_difference or "").startswith(f"dogs: {name}: element ")


def test_a_changed_config_is_found_and_what_changed_in_it_named(merged_folder):
    config = merged_folder / "cats" / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))

    report = verify(merged_folder)

    assert not report.equal
    expected = 'cats/config.json: hidden_act is "relu", expected "gelu"'
    assert report.first_difference == expected


@pytest.mark.parametrize(
    ("name", "content", "difference"),
    [
        ("preprocessor_config.json", None, "missing"),
        ("preprocessor_config.json", "[]", "not what its inputs make of it"),
        ("tokenizer.json", "{}", "not made by its recipe"),
    ],
)
def test_files_that_are_loaded_with_the_weights_are_compared(
    merged_folder, name, content, difference
):
    place = merged_folder / "dogs" / name
    if content is None:
        place.unlink()
    else:
        place.write_text(content)

    assert verify(merged_folder).first_difference == f"dogs/{name}: {difference}"


def test_files_of_no_recipe_are_named_and_no_difference(merged_folder):
    (merged_folder / "cats" / "README.md").write_text("A cat is a small domesticated carnivore.")
    (merged_folder / "notes\n.txt").write_text("")
    before = verify(merged_folder)

    assert before.equal
    assert before.others == ("cats/README.md", "notes\\n.txt")


def test_a_changed_recipe_is_found(merged):
    """It holds the class names, which moma reads there."""
    with Checkpoint.open(merged) as opened:
        metadata = dict(opened.metadata)
    recipe = json.loads(metadata["moma"])
    recipe["configs"]["cats"]["id2label"]["0"] = "dogs"
    for changed in (recipe, recipe | {"extra": 1}):
        save_file(load_file(merged), merged, metadata=metadata | {"moma": json.dumps(changed)})

        assert (verify(merged).first_difference or "").startswith(
            "the recipe in merged.safetensors: configs is "
        )


def test_metadata_that_moma_does_not_write_is_found(merged):
    with Checkpoint.open(merged) as opened:
        metadata = dict(opened.metadata)
    save_file(load_file(merged), merged, metadata=metadata | {"config": "{}"})

    expected = "the metadata of merged.safetensors: config is not as its recipe has it"
    assert verify(merged).first_difference == expected


def test_a_tensor_too_many_is_found(merged):
    with Checkpoint.open(merged) as opened:
        metadata = dict(opened.metadata)
    save_file(load_file(merged) | {"extra": torch.ones(2)}, merged, metadata=metadata)

    assert verify(merged).first_difference == "extra: not made by its recipe"


def test_a_tensor_too_few_is_found(merged):
    with Checkpoint.open(merged) as opened:
        metadata = dict(opened.metadata)
    tensors = load_file(merged)
    name = sorted(key for key in tensors if key.startswith("vit."))[0]
    del tensors[name]
    save_file(tensors, merged, metadata=metadata)

    assert verify(merged).first_difference == f"{name}: missing"


def test_an_input_that_changed_is_an_error_that_names_it(files, merged):
    flip(files / "cats.safetensors", "classifier.bias")

    with pytest.raises(ConflictError, match=r"cats\.safetensors is not what"):
        verify(merged)


def test_a_digest_that_was_remembered_is_not_believed(files, merged, monkeypatch):
    monkeypatch.setattr("momacli.checkpoint.hashed_file.known_digest", lambda _state: "0" * 64)

    assert verify(merged).equal


def test_an_input_that_is_gone_is_named(files, merged):
    (files / "dogs.safetensors").unlink()

    with pytest.raises(CheckpointError, match="was made from dogs, which cannot be opened"):
        verify(merged)


def test_the_steps_of_a_recipe_are_made_again(files):
    recipe = files / "recipe.toml"
    recipe.write_text(
        'base = "base.safetensors"\n'
        '[[steps]]\nname = "pets"\nmethod = "ties"\n'
        'inputs = ["cats.safetensors", "dogs.safetensors"]\n'
        '[[steps]]\nmethod = "average"\ninputs = ["pets", "birds.safetensors"]\n'
    )
    output = files / "out.safetensors"
    merge_recipe(recipe, output=output)

    assert verify(output).equal
    flip(output, "vit.layernorm.bias")
    assert (verify(output).first_difference or "").startswith("vit.layernorm.bias: element ")


def test_of_an_aligned_model_the_last_step_is_made_again(files, merged):
    alignment = files / "aligned.alignment.safetensors"
    generator = torch.Generator().manual_seed(0)
    with MultiTask.open(merged) as model, Checkpoint.open(files / "base.safetensors") as base:
        from momacli.alignment.folding import record_merged

        width = model.tasks["cats"].entries["classifier.weight"].shape[1]
        rotations = [
            torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in TASKS
        ]
        recipe = Recipe(
            command="align",
            base=record_input(base, alignment, digests=True),
            heads=["classifier.bias", "classifier.weight"],
            tasks=TASKS,
            configs=model.recipe.configs if model.recipe else {},
            merged=record_merged(model, alignment),
        )
        fitted = alignment_of(
            dict(zip(TASKS, rotations, strict=True)),
            {},
            headroom=1.0,
            layer="classifier",
            recipe=recipe,
            place=alignment,
        )
        write_alignment(alignment, fitted, {})
    output = files / "aligned.safetensors"
    absorb(merged, alignment, output=output)

    assert verify(output).equal
    flip(output, "heads.dogs.classifier.weight")
    found = verify(output).first_difference or ""
    assert found.startswith("heads.dogs.classifier.weight: element ")
    moved = alignment.rename(files / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"alignment\.safetensors does not exist"):
        verify(output)
    assert verify(output, alignment=moved).first_difference == found
    flip(moved, "transform.cats")
    with pytest.raises(
        ConflictError, match=r"elsewhere\.safetensors is not what .*aligned\.safetensors"
    ):
        verify(output, alignment=moved)


def test_what_moma_did_not_make_is_refused(files):
    with pytest.raises(CheckpointError, match="moma did not write it"):
        verify(files / "cats.safetensors")


def test_the_command_prints_the_answer_and_exits_with_it(merged, capsys):
    assert run(["verify", str(merged)]) == 0
    assert capsys.readouterr().out == "equal\n"

    flip(merged, "vit.layernorm.bias")
    assert run(["verify", str(merged)]) == 1
    assert capsys.readouterr().out.startswith("differs: vit.layernorm.bias: element ")
    assert run(["verify", "--json", str(merged)]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False
