"""Methods that make a model of every task instead of a merge of all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CLASSES
from torch import Tensor

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.cli.main import run
from momacli.errors import ConflictError, UsageError
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.merge_recipe import merge_like, merge_recipe
from momacli.verify import verify


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def inputs(folder: Path) -> list[Path]:
    return [folder / f"{task}.safetensors" for task in ("base", *CLASSES)]


def encoder(model: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in model.items() if key.startswith("vit.")}


def vectors(folder: Path, base: dict[str, Tensor]) -> np.ndarray:
    models = [load_file(folder / f"{task}.safetensors") for task in CLASSES]
    return np.stack([as_vector(model, base) - as_vector(base, base) for model in models])


def as_vector(model: dict[str, Tensor], like: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([model[key].double().numpy().ravel() for key in sorted(encoder(like))])


def test_without_a_task_there_is_a_file_of_each_as_the_paper_defines_it(vit_files):
    report = merge(inputs(vit_files), method="emr", output="each")

    base = load_file(vit_files / "base.safetensors")
    taus = vectors(vit_files, base)
    gamma = np.where(taus.sum(axis=0) > 0, 1.0, -1.0)
    unified = gamma * np.max(np.where(taus * gamma > 0, np.abs(taus), 0), axis=0)
    for tau, (task, classes) in zip(taus, CLASSES.items(), strict=True):
        masked = unified * (tau * unified > 0)
        expected = as_vector(base, base) + np.abs(tau).sum() / np.abs(masked).sum() * masked
        found = load_file(report.output / f"{task}.safetensors")
        np.testing.assert_allclose(as_vector(found, base), expected, atol=1e-6)
        heads = [key for key in found if key.startswith("heads.")]
        assert {key.split(".")[1] for key in heads} == {task}
        assert found[f"heads.{task}.classifier.weight"].shape == (len(classes), 16)
    assert report.stored_bits == 3 * (taus.shape[1] + 32)
    assert report.tasks == tuple(CLASSES)


@pytest.mark.parametrize("method", ["emr", "tall-mask"])
def test_a_named_task_alone_is_the_same_model(vit_files, method):
    merge(inputs(vit_files), method=method, output="each")
    report = merge(
        inputs(vit_files), method=method, options={"task": "cats"}, output="one.safetensors"
    )

    each, one = load_file("each/cats.safetensors"), load_file("one.safetensors")
    assert each.keys() == one.keys()
    assert all(torch.equal(each[key], one[key]) for key in one)
    parameters = sum(value.numel() for value in encoder(one).values())
    assert report.stored_bits == parameters + (32 if method == "emr" else 0)
    assert report.parameters["task"] == "cats"


def test_folders_give_model_folders_that_load_and_can_be_evaluated(vit_folders, vit_images):
    import transformers

    experts = [vit_folders / task for task in CLASSES]
    merge(experts, base=vit_folders / "base", method="tall-mask")
    merge(
        experts,
        base=vit_folders / "base",
        method="tall-mask",
        options={"task": "dogs"},
        output="only-dogs",
    )

    model = transformers.AutoModelForImageClassification.from_pretrained("merged/dogs")
    alone = transformers.AutoModelForImageClassification.from_pretrained("only-dogs")
    assert model.config.id2label == dict(enumerate(CLASSES["dogs"]))
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    scores = evaluate(["merged"], data=vit_images / "labeled").scores["merged"]
    assert set(scores) == set(CLASSES)
    assert verify("merged").equal
    assert verify("only-dogs").equal
    merge_like("merged/cats")


def test_a_model_of_one_task_is_aligned_by_itself(vit_folders, vit_images):
    experts = [vit_folders / task for task in CLASSES]
    merge(experts, base=vit_folders / "base", method="emr")
    steps = Settings(steps=1)

    with pytest.raises(ConflictError, match="share no encoder"):
        align("merged", data=vit_images / "unlabeled", settings=steps, cache="cache")
    report = align("merged/dogs", data=vit_images / "unlabeled", settings=steps, cache="cache")

    assert set(report.tasks) == {"dogs"}
    assert verify("aligned").equal


def test_each_output_can_be_verified_and_made_again(vit_files):
    merge(inputs(vit_files), method="emr", output="each")
    before = Path("each/cats.safetensors").read_bytes()

    merge_like("each/cats.safetensors")

    assert verify("each").equal
    assert Path("each/cats.safetensors").read_bytes() == before
    damaged = bytearray(Path("each/dogs.safetensors").read_bytes())
    damaged[-5] ^= 1
    Path("each/dogs.safetensors").write_bytes(damaged)
    report = verify("each")
    assert not report.equal
    assert (report.first_difference or "").startswith("dogs.safetensors: ")


def test_a_recipe_may_reconstruct_in_its_last_step_or_name_the_task_before(vit_files):
    shutil.copytree(vit_files, "ckpts")
    text = """
    base = "ckpts/base.safetensors"
    output = "out.safetensors"
    [[steps]]
    name = "cats-again"
    method = "emr"
    TASK
    inputs = ["ckpts/cats.safetensors", "ckpts/dogs.safetensors"]
    [[steps]]
    method = "average"
    inputs = ["cats-again", "ckpts/birds.safetensors"]
    """
    Path("named.toml").write_text(text.replace("TASK", 'task = "cats"'))
    Path("unnamed.toml").write_text(text.replace("TASK", ""))
    Path("last.toml").write_text(
        text.replace("TASK", 'task = "cats"')
        .replace('"average"', '"emr"')
        .replace("out.safetensors", "out")
    )

    merge_recipe("named.toml")
    merge_recipe("last.toml")

    keys = load_file("out.safetensors").keys()
    assert {key.split(".")[1] for key in keys if key.startswith("heads.")} == {"birds", "cats"}
    assert verify("out.safetensors").equal
    assert {path.name for path in Path("out").iterdir()} == {
        "birds.safetensors",
        "cats-again.safetensors",
    }
    assert verify("out").equal
    with pytest.raises(UsageError, match="none is named"):
        merge_recipe("unnamed.toml", output="no.safetensors")


@pytest.mark.parametrize(
    ("options", "output", "match"),
    [
        ({"task": "horses"}, "o", "is no expert"),
        ({"task": "0"}, "o", "is no expert"),
        ({}, "o.safetensors", "is one file"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(vit_files, options, output, match):
    with pytest.raises(UsageError, match=match):
        merge(inputs(vit_files), method="emr", options=options, output=output)

    assert not Path(output).exists()


def test_the_command_line_takes_the_task_by_name_and_counts_the_bits(vit_files, capfd):
    shutil.copytree(vit_files, "ckpts")
    ckpts = sorted(str(path) for path in Path("ckpts").glob("*.safetensors"))

    assert run(["merge", *ckpts, "--method", "emr", "-o", "each", "--dry-run"]) == 0
    planned = capfd.readouterr().out
    assert not Path("each").exists()
    assert run(["merge", *ckpts, "--method", "emr", "-o", "each", "--json"]) == 0
    shown = capfd.readouterr()
    assert run(["merge", *ckpts, "--method", "emr", "--task", "cats"]) == 0
    assert capfd.readouterr().out == "merged.safetensors\n"
    assert run(["merge", *ckpts, "--method", "ties", "--task", "cats"]) == 2

    assert "emr" in planned
    assert json.loads(shown.out)["stored_bits"] == 3 * (4832 + 32)
    assert "stored   1.8 kB would tell the tasks apart, beside one multi-task vector" in shown.err
    assert "method ties has no option --task" in capfd.readouterr().err
    assert run(["methods", "emr"]) == 0
    assert "--task NAME" in capfd.readouterr().out
