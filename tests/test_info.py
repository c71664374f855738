import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from momacli.cli.main import run
from momacli.info import compare, info
from momacli.merge import merge


@pytest.fixture
def merged(vit_files, tmp_path):
    """An output and its inputs, in a folder of their own."""
    place = tmp_path / "files"
    shutil.copytree(vit_files, place)
    experts = [place / f"{task}.safetensors" for task in ("cats", "dogs")]
    merge(experts, base=place / "base.safetensors", output=place / "merged.safetensors")
    return place / "merged.safetensors"


def test_every_tensor_is_in_one_module_and_counted_once(merged):
    found = info(merged)

    tensors = load_file(merged)
    listed = [one for module in found.modules for one in module.tensors]
    assert {one.name: one.shape for one in listed} == {
        k: tuple(v.shape) for k, v in tensors.items()
    }
    assert found.parameters == sum(value.numel() for value in tensors.values())
    assert found.nbytes == sum(value.nbytes for value in tensors.values())
    assert found.tasks == ("cats", "dogs")


def test_what_several_folders_share_is_counted_once(vit_folders, tmp_path):
    output = tmp_path / "merged"
    merge([vit_folders / "cats", vit_folders / "dogs"], base=vit_folders / "base", output=output)

    found = info(output)

    parts = [load_file(output / task / "model-00002-of-00002.safetensors") for task in found.tasks]
    encoder = load_file(output / "cats" / "model-00001-of-00002.safetensors")
    heads = sum(value.numel() for part in parts for value in part.values())
    assert found.parameters == heads + sum(value.numel() for value in encoder.values())


def test_the_origin_goes_back_as_far_as_files_tell(merged):
    second = merged.with_name("second.safetensors")
    merge([merged], base=merged.with_name("base.safetensors"), heads=["heads.*"], output=second)
    merged.with_name("dogs.safetensors").unlink()

    origin = info(second).origin

    assert [item.name for item in origin.inputs] == ["base", "merged"]
    assert [item.name for item in origin.inputs[1].inputs] == ["base", "cats", "dogs"]
    assert [item.found for item in origin.inputs[1].inputs] == [True, True, False]
    assert origin.command == origin.inputs[1].command == "merge"


def test_a_folder_of_several_tasks_and_the_file_of_the_same_merge_are_equal(vit_folders, tmp_path):
    folder, file = tmp_path / "merged", tmp_path / "merged.safetensors"
    weights = "model.safetensors"
    merge([vit_folders / "cats", vit_folders / "dogs"], base=vit_folders / "base", output=folder)
    merge(
        [f"{task}={vit_folders / task / weights}" for task in ("cats", "dogs")],
        base=vit_folders / "base" / weights,
        output=file,
    )

    found = compare(folder, file)

    assert found.differences == ()
    assert found.equal == len(load_file(file))


def test_what_differs_between_folders_of_tasks_goes_by_their_names(vit_folders, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for output in (one, other):
        merge(
            [vit_folders / "cats", vit_folders / "dogs"], base=vit_folders / "base", output=output
        )
    head = other / "dogs" / "model-00002-of-00002.safetensors"
    changed = {key: value + 1 for key, value in load_file(head).items()}
    with safe_open(head, "pt") as opened:
        save_file(changed, head, metadata=opened.metadata())

    names = {difference.name for difference in compare(one, other).differences}

    assert names == {"heads.dogs.classifier.weight", "heads.dogs.classifier.bias"}


def test_experts_share_no_tensor_and_are_told_apart(vit_folders, tmp_path):
    for task in ("cats", "dogs"):
        shutil.copytree(vit_folders / task, tmp_path / "experts" / task)

    found = info(tmp_path / "experts")

    assert found.parameters == sum(
        value.numel()
        for task in ("cats", "dogs")
        for value in load_file(vit_folders / task / "model.safetensors").values()
    )
    assert all(module.name.startswith(("cats/", "dogs/")) for module in found.modules)


def test_the_origin_of_one_tasks_folder_is_that_of_the_whole_output(vit_folders, tmp_path):
    output = tmp_path / "merged"
    merge([vit_folders / "cats", vit_folders / "dogs"], base=vit_folders / "base", output=output)

    origin = info(output / "dogs").origin

    assert [(item.name, item.found) for item in origin.inputs] == [
        ("base", True),
        ("cats", True),
        ("dogs", True),
    ]


def test_all_that_differs_between_two_is_listed(tmp_path):
    first = {"same": torch.ones(3), "moved": torch.tensor([3.0, 4.0]), "gone": torch.ones(1)}
    second = {"same": torch.ones(3), "moved": torch.tensor([3.0, 4.5]), "new": torch.ones(1)}
    first["shape"], second["shape"] = torch.ones(2), torch.ones(3)
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")

    found = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    kinds = {one.name: one.kind for one in found.differences}
    assert kinds == {
        "moved": "values",
        "gone": "only in the first",
        "new": "only in the second",
        "shape": "type or shape",
    }
    (moved,) = (one for one in found.differences if one.name == "moved")
    assert (moved.changed, moved.relative) == (1, pytest.approx(0.1))
    assert found.equal == 1


def test_a_zero_and_its_negative_are_not_the_same_bits(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"w": -torch.zeros(2)}, tmp_path / "b.safetensors")

    (found,) = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors").differences

    assert (found.changed, found.relative) == (2, None)


def test_the_command_prints_modules_and_a_tree(merged, capsys):
    assert run(["info", str(merged), "--tensors"]) == 0

    shown = capsys.readouterr().out
    assert "heads.cats.classifier.weight" in shown
    assert "merged.safetensors, made by moma merge (method task-arithmetic" in shown
    assert "└─ dogs, SHA-256 " in shown


def test_the_command_prints_what_differs(merged, capsys):
    base = str(merged.with_name("base.safetensors"))

    assert run(["info", base, base]) == 0
    assert capsys.readouterr().out.endswith(" tensors are the same, 0 differ\n")
    assert run(["info", base, str(merged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]
    assert run(["info", base, str(merged)]) == 0
    assert "only in the second" in capsys.readouterr().out
