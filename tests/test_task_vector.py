import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES

from momacli.errors import CheckpointError, ConflictError, OutputError, UsageError
from momacli.merge import merge
from momacli.progress import Notice, Progress
from momacli.task_vector import task_vector


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where a default output does no harm."""
    monkeypatch.chdir(tmp_path)


def encoder_of(folder: Path, task: str) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / f"{task}.safetensors")
    return {key: value for key, value in tensors.items() if not key.startswith("classifier.")}


def inputs_in(folder: Path) -> tuple[Path, list[Path]]:
    return folder / "base.safetensors", [folder / f"{task}.safetensors" for task in CLASSES]


def flat(folder: Path, task: str) -> np.ndarray:
    """The task vector by NumPy alone, in float64."""
    base, expert = encoder_of(folder, "base"), encoder_of(folder, task)
    parts = [(expert[key].numpy() - base[key].numpy()).ravel() for key in sorted(base)]
    return np.concatenate(parts).astype(np.float64)


# what is written


def test_a_task_vector_is_the_expert_minus_the_base(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    report = task_vector(base, experts, output=tmp_path / "out")

    assert {path.name for path in (tmp_path / "out").iterdir()} == {p.name for p in experts}
    theta_0 = encoder_of(vit_files, "base")
    for vector in report.task_vectors:
        written = load_file(vector.output)
        for key, value in encoder_of(vit_files, vector.task).items():
            assert torch.equal(written[key], value - theta_0[key])


def test_head_tensors_go_along_unchanged_under_the_name_of_their_task(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    task_vector(base, experts, output=tmp_path / "out")

    own, written = load_file(experts[0]), load_file(tmp_path / "out" / experts[0].name)
    heads = {key: value for key, value in written.items() if key.startswith("heads.")}
    assert set(heads) == {"heads.birds.classifier.weight", "heads.birds.classifier.bias"}
    assert torch.equal(heads["heads.birds.classifier.weight"], own["classifier.weight"])


def test_integer_and_excluded_tensors_are_not_in_it_and_reported(tmp_path):
    base = {"w": torch.ones(3), "frozen": torch.ones(2), "position_ids": torch.arange(2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "x.safetensors")

    report = task_vector(
        tmp_path / "base.safetensors",
        [tmp_path / "x.safetensors"],
        output=tmp_path / "out.safetensors",
        exclude=["frozen"],
    )

    assert set(load_file(tmp_path / "out.safetensors")) == {"w"}
    assert report.skipped == ("frozen", "position_ids")


def test_differences_of_half_precision_models_are_float32_unless_asked_otherwise(tmp_path):
    for name, value in {"base": 256.0, "x": 1.0}.items():
        save_file({"w": torch.full((2,), value).bfloat16()}, tmp_path / f"{name}.safetensors")
    base, expert = tmp_path / "base.safetensors", tmp_path / "x.safetensors"

    task_vector(base, [expert], output=tmp_path / "a.safetensors")
    task_vector(base, [expert], output=tmp_path / "b.safetensors", dtype="float16")

    exact, half = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert exact["w"].dtype == torch.float32  # bfloat16 has no -255
    assert half["w"].dtype == torch.float16
    assert exact["w"].tolist() == half["w"].tolist() == [-255.0, -255.0]


def test_by_default_each_task_has_its_file_in_a_folder_even_a_single_one(
    vit_files, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    base, experts = inputs_in(vit_files)

    task_vector(base, experts[:1])

    assert (tmp_path / "task-vectors" / "birds.safetensors").is_file()


def test_several_task_vectors_do_not_fit_in_one_file(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    with pytest.raises(UsageError, match="is one file, but there are 3 experts"):
        task_vector(base, experts, output=tmp_path / "out.safetensors")

    assert list(tmp_path.iterdir()) == []


def test_the_recipe_names_base_and_expert_with_their_sha256(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)
    output = tmp_path / "out.safetensors"

    task_vector(base, experts[1:2], output=output)

    with safe_open(output, "pt") as opened:
        recipe = json.loads(opened.metadata()["moma"])
    assert recipe["command"] == "task-vector"
    assert recipe["tasks"] == ["cats"]
    for item, file in ((recipe["base"], base), (recipe["inputs"][0], experts[1])):
        assert item["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
        assert (tmp_path / item["path"]).resolve() == file.resolve()


def test_the_same_command_writes_the_same_bytes(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    task_vector(base, experts, output=tmp_path / "a")
    task_vector(base, experts[::-1], output=tmp_path / "b")

    for file in experts:
        assert (tmp_path / "a" / file.name).read_bytes() == (
            tmp_path / "b" / file.name
        ).read_bytes()


# what is measured


def test_norms_cosines_and_sparsity_are_those_of_the_whole_vectors(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    report = task_vector(base, experts, output=tmp_path / "out")

    taus = [flat(vit_files, task) for task in CLASSES]
    norms = np.array([np.linalg.norm(tau) for tau in taus])
    np.testing.assert_allclose([v.norm for v in report.task_vectors], norms, rtol=1e-12)
    np.testing.assert_allclose(report.cosines, np.inner(taus, taus) / np.outer(norms, norms))
    assert [v.sparsity for v in report.task_vectors] == [np.mean(tau == 0) for tau in taus]


def test_groups_are_layers_and_their_squares_add_up_to_the_whole(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    report = task_vector(base, experts, output=tmp_path / "out")

    assert [group.name for group in report.groups] == [
        "vit.embeddings",
        "vit.encoder.layer.0",
        "vit.encoder.layer.1",
        "vit.layernorm",
    ]
    for t, vector in enumerate(report.task_vectors):
        squares = math.fsum(group.norms[t] ** 2 for group in report.groups)
        assert math.isclose(squares, vector.norm**2)
    assert sum(group.parameters for group in report.groups) == report.parameters


def test_layers_are_in_their_natural_order(tmp_path):
    base = {f"model.layers.{i}.w": torch.ones(1) for i in (0, 2, 10)} | {"norm": torch.ones(1)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(base, tmp_path / "x.safetensors")

    report = task_vector(
        tmp_path / "base.safetensors", [tmp_path / "x.safetensors"], output=tmp_path / "out"
    )

    names = [group.name for group in report.groups]
    assert names == ["model.layers.0", "model.layers.2", "model.layers.10", "norm"]


def test_what_looks_like_a_mistake_is_remarked_upon(tmp_path):
    base = torch.ones(4)
    models = {"base": base, "same": base, "far": -9 * base, "twin": -9 * base}
    for name, values in models.items():
        save_file({"w": values}, tmp_path / f"{name}.safetensors")
    events: list[Progress | Notice] = []

    report = task_vector(
        tmp_path / "base.safetensors",
        [tmp_path / f"{name}.safetensors" for name in ("same", "far", "twin")],
        output=tmp_path / "out",
        listener=events.append,
    )

    remarks = [event.text for event in events if isinstance(event, Notice)]
    assert len(remarks) == 4
    assert "same equals the base" in remarks[0]
    assert "far is larger than the base" in remarks[1]
    assert "far and twin are the same model" in remarks[3]
    assert report.cosines[0] == (None, None, None)
    assert report.task_vectors[0].sparsity == 1


# in place of an expert


@pytest.mark.parametrize("method", ["average", "ties"])
def test_task_vectors_merge_like_the_experts_they_stand_for(vit_files, tmp_path, method):
    base, experts = inputs_in(vit_files)
    task_vector(base, experts, output=tmp_path / "taus")

    merge([base, *experts], method=method, output=tmp_path / "a.safetensors")
    merge(
        sorted((tmp_path / "taus").iterdir()),
        base=base,
        method=method,
        output=tmp_path / "b.safetensors",
    )

    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert set(one) == set(other)  # heads included
    assert all(torch.equal(other[key], value) for key, value in one.items())


def test_a_task_vector_keeps_what_its_model_is(vit_folders, tmp_path):
    from transformers import AutoModelForImageClassification

    task_vector(vit_folders / "base", [vit_folders / "cats"], output=tmp_path / "taus")

    merge(
        [tmp_path / "taus" / "cats.safetensors"],
        base=vit_folders / "base",
        options={"lam": 1.0},
        output=tmp_path / "merged",
    )

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged" / "cats")
    assert tuple(model.config.id2label.values()) == CLASSES["cats"]
    assert (tmp_path / "merged" / "cats" / "preprocessor_config.json").is_file()


def test_a_negative_weight_takes_a_task_away(tmp_path):
    save_file({"w": torch.tensor([1.0, 2.0])}, tmp_path / "base.safetensors")
    save_file({"w": torch.tensor([1.5, 4.0])}, tmp_path / "x.safetensors")
    base, tau = tmp_path / "base.safetensors", tmp_path / "tau.safetensors"
    task_vector(base, [tmp_path / "x.safetensors"], output=tau)

    merge([tau], base=base, weights=[-1], options={"lam": 1}, output=tmp_path / "out.safetensors")

    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [0.5, 0.0]


def test_the_task_vector_of_another_base_is_refused_unless_asked_for(tmp_path):
    for name, value in {"base": 1.0, "other": 2.0, "x": 3.0}.items():
        save_file({"w": torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    tau, output = tmp_path / "tau.safetensors", tmp_path / "out.safetensors"
    task_vector(tmp_path / "base.safetensors", [tmp_path / "x.safetensors"], output=tau)
    given = {"base": tmp_path / "other.safetensors", "options": {"lam": 1.0}, "output": output}

    with pytest.raises(ConflictError, match="not the base these task vectors") as caught:
        merge([tau], **given)
    refused = not output.exists()
    merge([tau], **given, other_base=True)

    assert refused
    assert str(tmp_path / "base.safetensors") in caught.value.details[0]
    assert load_file(output)["w"].tolist() == [4.0, 4.0]


def test_a_renamed_base_is_still_the_base(tmp_path):
    for name, value in {"base": 1.0, "x": 3.0}.items():
        save_file({"w": torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    tau = tmp_path / "tau.safetensors"
    task_vector(tmp_path / "base.safetensors", [tmp_path / "x.safetensors"], output=tau)
    moved = (tmp_path / "base.safetensors").rename(tmp_path / "renamed.safetensors")

    report = merge([tau], base=moved, output=tmp_path / "out.safetensors")

    assert report.tasks == ("tau",)


def test_a_task_vector_is_no_base_and_has_no_task_vector(tmp_path):
    for name in ("base", "x"):
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    base, x, tau = (tmp_path / f"{name}.safetensors" for name in ("base", "x", "tau"))
    task_vector(base, [x], output=tau)

    with pytest.raises(ConflictError, match="is a task vector"):
        merge([x], base=tau)
    with pytest.raises(ConflictError, match="task vectors already"):
        task_vector(base, [tau], output=tmp_path / "again.safetensors")


# failures


def test_all_conflicts_are_reported_at_once_and_nothing_is_written(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "base.safetensors")
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    save_file(
        {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "y.safetensors"
    )

    with pytest.raises(ConflictError) as caught:
        task_vector(
            tmp_path / "base.safetensors",
            [tmp_path / "x.safetensors", tmp_path / "y.safetensors"],
            output=tmp_path / "out",
        )

    assert len(caught.value.details) == 3
    assert not (tmp_path / "out").exists()


def test_nan_leaves_nothing_behind(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "base.safetensors")
    save_file({"a": torch.tensor([1.0, torch.nan])}, tmp_path / "x.safetensors")
    before = set(tmp_path.iterdir())

    with pytest.raises(ConflictError, match="NaN"):
        task_vector(
            tmp_path / "base.safetensors", [tmp_path / "x.safetensors"], output=tmp_path / "out"
        )

    assert set(tmp_path.iterdir()) == before


def test_inputs_are_never_the_output(vit_files, tmp_path):
    base, experts = inputs_in(vit_files)

    with pytest.raises(OutputError, match="would overwrite the input"):
        task_vector(base, experts, output=vit_files, force=True)


def test_a_damaged_expert_is_named(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "base.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"\x10" * 7)

    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        task_vector(tmp_path / "base.safetensors", [tmp_path / "x.safetensors"])
