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


@pytest.fixture
def moved_layers(tmp_path):
    """Two files of twelve layers: 0 keeps its values, layer n moves weight by n %, bias by 1 %."""
    first, second = {}, {}
    for n in range(12):
        weight, bias = f"encoder.layer.{n}.weight", f"encoder.layer.{n}.bias"
        first |= {weight: torch.ones(2, 3), bias: torch.ones(4)}
        second |= {weight: torch.ones(2, 3) * (1 + n / 100), bias: torch.ones(4)}
        second[bias] = first[bias] * (1.01 if n else 1)
    second["head.weight"] = torch.ones(1)
    for name, tensors in (("a", first), ("b", second)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_what_differs_is_told_by_module_in_the_order_of_the_layers(moved_layers):
    found = compare(*moved_layers)

    assert [module.name for module in found.modules] == [
        *(f"encoder.layer.{n}" for n in range(1, 12)),
        "head",
    ]
    assert [(module.tensors, module.changed) for module in found.modules[:-1]] == [(2, 10)] * 11
    assert (found.modules[-1].tensors, found.modules[-1].changed) == (1, None)
    assert found.equal == 2


def test_the_tensor_that_moved_most_stands_for_its_module(moved_layers):
    layers = compare(*moved_layers).modules[1:-1]

    assert [module.largest.name for module in layers] == [
        f"encoder.layer.{n}.weight" for n in range(2, 12)
    ]
    assert [module.largest.relative for module in layers] == pytest.approx(
        [n / 100 for n in range(2, 12)], rel=1e-4
    )


def test_a_tensor_that_became_nan_is_the_one_that_moved_most(tmp_path):
    first = {"layer.0.a": torch.ones(2), "layer.0.b": torch.ones(2)}
    second = {"layer.0.a": torch.full((2,), torch.nan), "layer.0.b": torch.full((2,), 9.0)}
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")

    (module,) = compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors").modules

    assert module.largest.name == "layer.0.a"


def test_the_command_prints_a_line_a_module_unless_tensors_are_asked_for(moved_layers, capsys):
    files = [str(path) for path in moved_layers]

    assert run(["info", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["info", *files, "--tensors"]) == 0
    more = capsys.readouterr().out.splitlines()

    assert lines[1].split() == ["encoder.layer.1", "values", *lines[1].split()[2:]]
    assert lines[-3].split() == ["head", "only", "in", "the", "second", "1", "of", "1"]
    assert lines[-1] == "2 tensors are the same, 23 differ"
    assert len(more) == len(lines) + 23


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
    listed = json.loads(capsys.readouterr().out)["modules"]
    names = {one["name"] for module in listed for one in module["differences"]}
    assert names == {one.name for one in compare(base, merged).differences}
    assert run(["info", base, str(merged)]) == 0
    assert "only in the second" in capsys.readouterr().out
