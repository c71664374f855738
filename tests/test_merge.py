import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_device import DEVICE, PretendedDevice
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES
from torch import Tensor

from momacli.errors import CheckpointError, ConflictError, MomaError, OutputError, UsageError
from momacli.merge import merge
from momacli.methods._catalog import load_method, method_names
from momacli.progress import Notice, Progress

NATURAL = [
    ("average", {}),
    ("task-arithmetic", {"lam": 1.0}),
    ("ties", {"density": 1.0, "lam": 1.0}),
]
"""Methods that give a single expert back, with the options by which they do."""


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where a default output does no harm."""
    monkeypatch.chdir(tmp_path)


def experts_of(folder: Path) -> list[Path]:
    return [folder / f"{task}.safetensors" for task in CLASSES]


def write(folder: Path, **models: Mapping[str, Tensor]) -> list[Path]:
    """Write each model as a file named after its task; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in models.items():
        save_file(dict(tensors), folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in models]


def random_models(*names: str, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    """A base and experts near it, of a few tensors of different shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"a.weight": (7, 5), "a.bias": (7,), "scale": ()}
    base = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    models = {"base": base}
    for name in names:
        models[name] = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
    return {n: {key: value.to(dtype) for key, value in m.items()} for n, m in models.items()}


def as_vector(model: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([model[key].double().numpy().ravel() for key in sorted(like)])


def recipe_of(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["moma"])


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# what is computed


@pytest.mark.parametrize(("method", "options"), NATURAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_expert_comes_back_bit_for_bit(tmp_path, method, options, dtype):
    models = random_models("one", dtype=dtype)
    models["one"]["a.bias"] = models["base"]["a.bias"] * 1e-3  # where theta_0 + tau would round
    inputs = write(tmp_path, **models)

    merge(inputs, method=method, options=options, output=tmp_path / "out.safetensors")

    merged = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(merged[key], value) for key, value in models["one"].items())


def test_the_average_is_the_mean_of_the_experts(vit_files, tmp_path):
    output = tmp_path / "out.safetensors"

    merge([vit_files / "base.safetensors", *experts_of(vit_files)], method="average", output=output)

    base, merged = load_file(vit_files / "base.safetensors"), load_file(output)
    experts = [as_vector(load_file(file), base) for file in experts_of(vit_files)]
    np.testing.assert_allclose(as_vector(merged, base), np.mean(experts, axis=0), atol=1e-6)


def test_task_arithmetic_adds_lambda_times_the_sum_of_the_task_vectors(tmp_path):
    models = random_models("x", "y", "z")
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    merge(inputs, options={"lam": 0.4}, weights={"y": -2.0}, output=output)

    base, x, y, z = (as_vector(model, models["base"]) for model in models.values())
    expected = base + 0.4 * ((x - base) - 2 * (y - base) + (z - base))
    np.testing.assert_allclose(as_vector(load_file(output), models["base"]), expected, atol=1e-6)


def numpy_ties(base: np.ndarray, experts: list[np.ndarray], density: float) -> np.ndarray:
    """TIES with lambda 1 and the disjoint mean, as the paper states it, over whole vectors."""
    taus = np.stack(experts) - base
    keep = max(1, int(density * base.size))
    for tau in taus:
        tau[np.abs(tau) < np.sort(np.abs(tau))[-keep]] = 0
    gamma = np.sign(taus.sum(axis=0))
    gamma[gamma == 0] = 1 if gamma.sum() >= 0 else -1
    agreeing = np.where(taus * gamma > 0, taus, 0)
    count = np.maximum(1, (agreeing != 0).sum(axis=0))
    return base + agreeing.sum(axis=0) / count


def test_global_ties_trims_over_the_whole_vector(vit_files, tmp_path):
    output = tmp_path / "out.safetensors"

    merge(
        [vit_files / "base.safetensors", *experts_of(vit_files)],
        method="ties",
        options={"density": 0.3},
        output=output,
    )

    base = load_file(vit_files / "base.safetensors")
    experts = [as_vector(load_file(file), base) for file in experts_of(vit_files)]
    expected = numpy_ties(as_vector(base, base), experts, 0.3)
    np.testing.assert_allclose(as_vector(load_file(output), base), expected, atol=1e-6)


def test_entries_that_cancel_are_settled_by_the_whole_vector_in_the_middle_of_the_merge(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"layers.{i}.w": torch.zeros(700, 60) for i in range(9)}
    one, other = (
        {
            key: torch.from_numpy(rng.integers(-4, 4, x.shape).astype("f4"))
            for key, x in base.items()
        }
        for _ in range(2)
    )
    paths = write(tmp_path, base=base, one=one, other=other)

    report = merge(paths, method="ties", options={"density": 0.5})

    merged = as_vector(load_file(report.output), base)
    taus = [as_vector(model, base) for model in (one, other)]
    np.testing.assert_array_equal(merged, numpy_ties(0 * merged, taus, 0.5))
    recorded = [item["files"] for item in recipe_of(report.output)["inputs"]]
    assert recorded == [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths[1:]
    ]


def test_ties_by_tensor_trims_each_tensor_by_itself(tmp_path):
    models = random_models("x", "y")
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    merge(inputs, method="ties", options={"density": 0.4}, scope="tensor", output=output)

    merged = load_file(output)
    for key, value in models["base"].items():
        one = {key: value}
        experts = [as_vector(models[name], one) for name in ("x", "y")]
        expected = numpy_ties(as_vector(one, one), experts, 0.4)
        np.testing.assert_allclose(as_vector(merged, one), expected, atol=1e-6)


@pytest.mark.parametrize(("method", "options"), NATURAL)
def test_every_expert_counts(tmp_path, method, options):
    base = {f"layer.{i}": torch.zeros(4) for i in range(5)}
    experts = {f"task{i}": base | {f"layer.{i}": torch.ones(4)} for i in range(5)}
    inputs = write(tmp_path, base=base, **experts)
    output = tmp_path / "out.safetensors"

    merge(inputs, method=method, options=options, output=output)

    assert all(bool((values > 0).all()) for values in load_file(output).values())


@pytest.mark.parametrize("method", ["average", "task-arithmetic", "ties"])
def test_experts_equal_to_the_base_give_the_base(tmp_path, method):
    base = random_models()["base"]
    inputs = write(tmp_path, base=base, x=base, y=base)
    output = tmp_path / "out.safetensors"

    report = merge(inputs, method=method, output=output)

    merged = load_file(output)
    assert all(torch.equal(merged[key], value) for key, value in base.items())
    assert report.changed_share == 0


def test_half_precision_is_computed_in_float32_and_rounded_once(tmp_path):
    models = random_models("x", "y", "z", dtype=torch.bfloat16)
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    merge(inputs, options={"lam": 0.3}, output=output)

    base, *experts = (
        {key: value.float() for key, value in model.items()} for model in models.values()
    )
    merged = load_file(output)
    for key, theta_0 in base.items():
        taus = torch.stack([expert[key] - theta_0 for expert in experts])
        assert torch.equal(merged[key], (theta_0 + 0.3 * taus.sum(dim=0)).bfloat16())


def test_the_type_of_the_result_can_be_chosen_and_then_inputs_may_differ_in_type(tmp_path):
    models = random_models("x")
    models["x"] = {key: value.half() for key, value in models["x"].items()}
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    with pytest.raises(ConflictError, match="expected dtype F32, found F16"):
        merge(inputs, output=output)
    merge(inputs, output=output, dtype="bf16")

    assert {value.dtype for value in load_file(output).values()} == {torch.bfloat16}


def test_integer_tensors_come_from_the_base(tmp_path):
    models = random_models("x", "y")
    for i, model in enumerate(models.values()):
        model["position_ids"] = torch.tensor([i, 7])
    models["y"]["steps"] = torch.tensor(3)
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    report = merge(inputs, output=output)

    assert load_file(output)["position_ids"].tolist() == [0, 7]
    assert report.copied == ("position_ids",)
    assert report.left_out == ("steps",)


def test_empty_tensors_and_scalars_are_merged_like_any_other(tmp_path):
    base = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0)}
    expert = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(3.0)}
    inputs = write(tmp_path, base=base, x=expert)
    output = tmp_path / "out.safetensors"

    merge(inputs, method="ties", output=output)

    assert load_file(output)["scalar"] == 3.0
    assert load_file(output)["empty"].shape == (0, 3)


# the same bytes


@pytest.mark.parametrize("method", ["average", "task-arithmetic", "ties", "dare"])
def test_neither_the_order_of_the_inputs_nor_a_second_run_changes_a_byte(
    vit_files, tmp_path, method
):
    inputs = [vit_files / "base.safetensors", *experts_of(vit_files)]
    outputs = [tmp_path / f"{i}.safetensors" for i in range(3)]

    for output, order in zip(outputs, (inputs, inputs, inputs[::-1]), strict=True):
        merge(order, method=method, output=output)

    assert len({output.read_bytes() for output in outputs}) == 1


def test_a_seed_makes_other_bytes_and_the_same_seed_the_same(vit_files, tmp_path):
    inputs = [vit_files / "base.safetensors", *experts_of(vit_files)]

    def merged(seed: int) -> dict[str, Tensor]:
        output = tmp_path / "out.safetensors"
        merge(inputs, method="dare", seed=seed, output=output)
        return load_file(output)

    first, again, other = merged(1), merged(1), merged(2)

    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not all(torch.equal(other[key], value) for key, value in first.items())


def test_a_model_in_shards_merges_like_one_in_a_single_file(tmp_path):
    models = random_models("x")
    single, out_single = write(tmp_path / "files", **models), tmp_path / "a.safetensors"
    (tmp_path / "x").mkdir()
    table = {}
    for i, (key, value) in enumerate(models["x"].items(), 1):
        table[key] = f"model-{i:05}-of-00003.safetensors"
        save_file({key: value}, tmp_path / "x" / table[key])
    index = json.dumps({"metadata": {}, "weight_map": table})
    (tmp_path / "x" / "model.safetensors.index.json").write_text(index)
    out_sharded = tmp_path / "b.safetensors"

    merge(single, output=out_single)
    merge([single[0], tmp_path / "x"], output=out_sharded)

    one, other = load_file(out_single), load_file(out_sharded)
    assert all(torch.equal(other[key], value) for key, value in one.items())


# heads and folders


def test_folders_in_give_a_folder_of_models_that_transformers_loads_strictly(vit_folders, tmp_path):
    from transformers import AutoModelForImageClassification

    merge(sorted(vit_folders.iterdir()), output=tmp_path / "merged", options={"lam": 0.5})

    base = load_file(vit_folders / "base" / "model.safetensors")
    experts = {task: load_file(vit_folders / task / "model.safetensors") for task in CLASSES}
    encoder = {
        key: value + 0.5 * sum(expert[key] - value for expert in experts.values())
        for key, value in base.items()
    }
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for task, classes in CLASSES.items():
        by_hand = tmp_path / "by_hand" / task
        shutil.copytree(vit_folders / task, by_hand)
        save_file(experts[task] | encoder, by_hand / "model.safetensors", metadata={"format": "pt"})
        expected = AutoModelForImageClassification.from_pretrained(by_hand)
        model, info = AutoModelForImageClassification.from_pretrained(
            tmp_path / "merged" / task, output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert model.num_parameters() == expected.num_parameters()
        assert tuple(model.config.id2label.values()) == classes
        with torch.no_grad():
            torch.testing.assert_close(model(pixels).logits, expected(pixels).logits)
        assert (tmp_path / "merged" / task / "preprocessor_config.json").is_file()


def test_the_tasks_of_a_folder_share_one_encoder_on_disk(vit_folders, tmp_path):
    merge(sorted(vit_folders.iterdir()), output=tmp_path / "merged")

    shards = [tmp_path / "merged" / task / "model-00001-of-00002.safetensors" for task in CLASSES]
    assert len({shard.stat().st_ino for shard in shards}) == 1
    assert {path.name for path in (tmp_path / "merged").iterdir()} == set(CLASSES)


def test_outputs_are_named_after_what_comes_in(vit_folders, vit_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    from_folders = merge(sorted(vit_folders.iterdir()))
    from_files = merge([vit_files / "base.safetensors", *experts_of(vit_files)])
    mixed = merge([vit_folders / "base", vit_folders / "cats", vit_files / "dogs.safetensors"])

    assert from_folders.output == Path("merged")
    assert from_files.output == mixed.output == Path("merged.safetensors")


def test_the_name_of_the_output_says_whether_it_is_a_file_or_a_folder(
    vit_folders, vit_files, tmp_path
):
    merge(sorted(vit_folders.iterdir()), output=tmp_path / "one.safetensors")
    merge([vit_files / "base.safetensors", *experts_of(vit_files)], output=tmp_path / "several")

    assert (tmp_path / "one.safetensors").is_file()
    assert {path.name for path in (tmp_path / "several").iterdir()} == set(CLASSES)


def test_one_config_beside_several_files_serves_heads_of_every_size(vit_files, tmp_path):
    from transformers import AutoModelForImageClassification

    inputs = [vit_files / "base.safetensors", *experts_of(vit_files)]
    merge(inputs, output=tmp_path / "merged")
    merge(inputs, output=tmp_path / "merged.safetensors")

    for task, classes in CLASSES.items():
        folder = tmp_path / "merged" / task
        _, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        config = recipe_of(tmp_path / "merged.safetensors")["configs"][task]
        assert len(config["id2label"]) == len(classes)


def test_a_folder_of_models_cannot_be_made_of_files_that_nothing_describes(tmp_path):
    inputs = write(tmp_path, **random_models("x"))

    with pytest.raises(UsageError, match="nothing says what model x is"):
        merge(inputs, output=tmp_path / "folder")


def test_in_a_file_each_head_carries_the_name_of_its_task(vit_files, tmp_path):
    output = tmp_path / "out.safetensors"

    report = merge([vit_files / "base.safetensors", *experts_of(vit_files)], output=output)

    merged = load_file(output)
    for task, classes in CLASSES.items():
        weight = merged[f"heads.{task}.classifier.weight"]
        own = load_file(vit_files / f"{task}.safetensors")["classifier.weight"]
        assert weight.shape[0] == len(classes)
        assert torch.equal(weight, own)
    assert report.carried == 2 * len(CLASSES)


def test_heads_are_named_by_pattern_where_nothing_describes_the_model(tmp_path):
    models = random_models("x", "y")
    models["x"]["out.weight"] = torch.ones(2, 5)
    models["y"]["out.weight"] = torch.ones(4, 5)
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    with pytest.raises(ConflictError, match="extra") as caught:
        merge(inputs, output=output)
    merge(inputs, output=output, heads=["out.*"])

    assert "--heads" in str(caught.value.hint)
    merged = load_file(output)
    assert merged["heads.x.out.weight"].shape == (2, 5)
    assert merged["heads.y.out.weight"].shape == (4, 5)


def test_a_head_of_the_base_itself_is_left_behind_and_reported(tmp_path):
    models = random_models("x")
    for model in models.values():
        model["out.weight"] = torch.ones(2, 5)
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    report = merge(inputs, output=output, heads=["out.*"])

    assert report.base_head == ("out.weight",)
    assert "out.weight" not in load_file(output)


def test_excluded_tensors_are_the_base_s_and_reported(tmp_path):
    models = random_models("x", "y")
    models["x"]["extra"] = torch.ones(3)
    inputs = write(tmp_path, **models)
    output = tmp_path / "out.safetensors"

    report = merge(inputs, output=output, exclude=["a.*", "extra"])

    merged = load_file(output)
    assert torch.equal(merged["a.weight"], models["base"]["a.weight"])
    assert not torch.equal(merged["scale"], models["base"]["scale"])
    assert set(report.copied) == {"a.weight", "a.bias"}
    assert report.left_out == ("extra",)


# names, base and weights


@pytest.mark.parametrize("name", ["base", "pretrained", "zeroshot"])
def test_the_base_is_found_by_its_name(tmp_path, name):
    models = random_models("x")
    inputs = write(tmp_path, **{name: models["base"], "x": models["x"]})

    report = merge(inputs, output=tmp_path / "out.safetensors")

    assert report.base == tmp_path / f"{name}.safetensors"
    assert report.tasks == ("x",)


def test_a_base_given_by_path_may_be_among_the_inputs(tmp_path):
    models = random_models("x", "y")
    inputs = write(tmp_path, start=models["base"], x=models["x"], y=models["y"])

    report = merge(inputs, base=inputs[0], output=tmp_path / "out.safetensors")

    assert report.tasks == ("x", "y")


def test_without_a_base_the_error_says_how_to_name_it(tmp_path):
    inputs = write(tmp_path, x=random_models("x")["x"])

    with pytest.raises(UsageError, match="no base") as caught:
        merge(inputs)

    assert "--base" in str(caught.value.hint)


def test_two_bases_are_one_too_many(tmp_path):
    base = random_models()["base"]
    inputs = write(tmp_path, base=base, zeroshot=base, x=base)

    with pytest.raises(UsageError, match="more than one input could be the base"):
        merge(inputs)


def test_a_base_alone_is_nothing_to_merge(tmp_path):
    inputs = write(tmp_path, **random_models())

    with pytest.raises(UsageError, match="no expert was given"):
        merge(inputs)


def test_a_task_can_be_given_another_name(tmp_path):
    inputs = write(tmp_path, **random_models("x"))

    report = merge([inputs[0], f"cats={inputs[1]}"], output=tmp_path / "out.safetensors")

    assert report.tasks == ("cats",)


def test_two_tasks_of_one_name_must_be_named_apart(tmp_path):
    models = random_models("x")
    first = write(tmp_path / "one", **models)
    second = write(tmp_path / "two", x=models["x"])

    with pytest.raises(ConflictError, match="same name") as caught:
        merge([*first, *second])

    assert "NAME=PATH" in str(caught.value.hint)


def test_one_file_given_twice_under_two_names_is_refused(tmp_path):
    inputs = write(tmp_path, **random_models("x"))

    with pytest.raises(ConflictError, match="given twice"):
        merge([*inputs, f"y={inputs[1]}"])


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", " ", "a\nb"])
def test_a_name_that_cannot_be_a_folder_s_is_refused(tmp_path, name):
    inputs = write(tmp_path, **random_models("x"))

    with pytest.raises(UsageError, match="cannot be the name of a task"):
        merge([inputs[0], f"{name}={inputs[1]}"])


def test_all_inputs_that_do_not_exist_are_named_together(tmp_path):
    inputs = write(tmp_path, **random_models("x"))

    with pytest.raises(CheckpointError, match="2 of the 4 inputs do not exist") as caught:
        merge([*inputs, tmp_path / "y", tmp_path / "z"])

    assert caught.value.details == (str(tmp_path / "y"), str(tmp_path / "z"))


def test_a_folder_of_checkpoints_is_to_be_named_one_by_one(vit_files, vit_folders):
    for folder, hint in ((vit_files, "*.safetensors"), (vit_folders, "*")):
        with pytest.raises(UsageError, match=r"is a folder of 4 checkpoints") as caught:
            merge([folder])

        assert caught.value.hint == f"name them: {folder / hint}"


def test_weights_go_by_the_order_given_or_by_name(tmp_path):
    base, x, y = write(tmp_path, **random_models("x", "y"))
    outputs = [tmp_path / f"{i}.safetensors" for i in range(2)]

    merge([y, base, x], weights=[2.0, 3.0], output=outputs[0])
    merge([base, x, y], weights={"x": 3.0, "y": 2.0}, output=outputs[1])

    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], {"z": 1.0}])
def test_weights_that_fit_no_expert_are_refused(tmp_path, weights):
    inputs = write(tmp_path, **random_models("x", "y"))

    with pytest.raises(UsageError, match="--weights"):
        merge(inputs, weights=weights)


@pytest.mark.parametrize(
    "given",
    [
        {"options": {"density": 0.2}},
        {"options": {"lambda_": 0.2}},
        {"options": {"lam": "much"}},
        {"options": {"lam": float("nan")}},
        {"scope": "tensor"},
        {"method": "ties", "scope": "layer"},
        {"method": "magmax", "weights": [1.0]},
        {"method": "tis"},
        {"dtype": "int8"},
        {"exclude": ["nothing.like.this"]},
        {"heads": ["nothing.like.this"]},
    ],
    ids=str,
)
def test_nothing_asked_for_is_ignored(tmp_path, given):
    inputs = write(tmp_path, **random_models("x"))

    with pytest.raises(UsageError):
        merge(inputs, output=tmp_path / "out.safetensors", **given)

    assert not (tmp_path / "out.safetensors").exists()


# conflicts and failures


def test_all_conflicts_are_reported_at_once_before_anything_is_written(tmp_path):
    models = random_models("x", "y")
    models["x"]["a.weight"] = torch.zeros(7, 6)
    del models["x"]["a.bias"]
    models["y"]["scale"] = models["y"]["scale"].half()
    models["y"]["more"] = torch.zeros(2)
    inputs = write(tmp_path / "in", **models)

    with pytest.raises(ConflictError) as caught:
        merge(inputs, output=tmp_path / "out" / "merged.safetensors")

    assert set(caught.value.details) == {
        "x: a.weight   expected F32[7, 5], found F32[7, 6]",
        "x: a.bias   missing, expected F32[7]",
        "y: scale   expected dtype F32, found F16",
        "y: more   extra F32[2]",
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["base", "y"])
def test_nan_is_refused_by_the_name_of_the_model_and_the_tensor(tmp_path, broken):
    models = random_models("x", "y")
    models[broken]["a.weight"][3, 2] = torch.nan
    inputs = write(tmp_path / "in", **models)

    with pytest.raises(ConflictError, match=r"a\.weight holds NaN") as caught:
        merge(inputs, output=tmp_path / "out.safetensors")

    assert [broken in detail for detail in caught.value.details] == [True]
    assert files_in(tmp_path) == {"in", *(f"in/{path.name}" for path in inputs)}


def test_nan_in_a_head_is_refused(tmp_path):
    models = random_models("x")
    models["x"]["out.weight"] = torch.tensor([torch.inf])
    inputs = write(tmp_path, **models)

    with pytest.raises(ConflictError, match=r"head tensor out\.weight"):
        merge(inputs, heads=["out.*"], output=tmp_path / "out.safetensors")

    assert not (tmp_path / "out.safetensors").exists()


def test_values_beyond_the_type_of_the_result_are_refused(tmp_path):
    inputs = write(tmp_path, **random_models("x", dtype=torch.float16))

    with pytest.raises(ConflictError, match="values beyond F16"):
        merge(inputs, options={"lam": 1e9}, output=tmp_path / "out.safetensors")


def test_a_listener_that_fails_leaves_the_previous_output_and_nothing_else(tmp_path):
    inputs = write(tmp_path / "in", **random_models("x", "y"))
    output = tmp_path / "out.safetensors"
    merge(inputs, output=output)
    before, names = output.read_bytes(), files_in(tmp_path)

    def fail(event: Progress | Notice) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(inputs, options={"lam": 0.9}, output=output, listener=fail)

    assert output.read_bytes() == before
    assert files_in(tmp_path) == names


def test_progress_goes_up_to_all_the_bytes_there_are_to_read(tmp_path):
    inputs = write(tmp_path, **random_models("x", "y"))
    events: list[Progress | Notice] = []

    merge(inputs, method="ties", output=tmp_path / "out.safetensors", listener=events.append)

    stages = {event.stage: event for event in events if isinstance(event, Progress)}
    assert all(event.done == event.total == 3 * 43 * 4 for event in stages.values())
    assert list(stages)[-1] == "merging"


# where the output goes


def test_an_output_that_is_an_input_is_refused(tmp_path):
    inputs = write(tmp_path, **random_models("x"))
    before = inputs[1].read_bytes()

    for place in (inputs[1], tmp_path / "." / "x.safetensors"):
        with pytest.raises(OutputError, match="would overwrite the input"):
            merge(inputs, output=place, force=True)

    assert inputs[1].read_bytes() == before


def test_an_output_folder_that_holds_an_input_is_refused(vit_folders, tmp_path):
    shutil.copytree(vit_folders, tmp_path / "models")

    with pytest.raises(OutputError, match="would overwrite the input"):
        merge(sorted((tmp_path / "models").iterdir()), output=tmp_path / "models", force=True)


def test_a_stranger_s_file_is_replaced_only_by_force(tmp_path):
    inputs = write(tmp_path / "in", **random_models("x"))
    (output,) = write(tmp_path, mine={"important": torch.ones(3)})
    before = output.read_bytes()

    with pytest.raises(OutputError, match="moma did not write it"):
        merge(inputs, output=output)
    untouched = output.read_bytes() == before
    merge(inputs, output=output, force=True)

    assert untouched
    assert "important" not in load_file(output)


def test_a_folder_is_moma_s_only_if_everything_in_it_is(vit_folders, tmp_path):
    inputs, output = sorted(vit_folders.iterdir()), tmp_path / "merged"
    merge(inputs, output=output)
    merge(inputs, output=output)  # its own output is replaced
    (output / "notes.txt").write_text("a week's work\n")

    with pytest.raises(OutputError, match="moma did not write it") as caught:
        merge(inputs, output=output)

    assert caught.value.details == (str(output / "notes.txt"),)
    assert (output / "notes.txt").read_text() == "a week's work\n"


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(vit_folders, tmp_path):
    inputs = sorted(vit_folders.iterdir())
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "b").write_text("")

    with pytest.raises(OutputError, match="is a folder, where a file is to be written"):
        merge(inputs, output=tmp_path / "a.safetensors", force=True)
    with pytest.raises(OutputError, match="is a file, where a folder is to be written"):
        merge(inputs, output=tmp_path / "b", force=True)


@pytest.mark.parametrize("place", [".", "..", "../here", ""])
def test_the_folder_this_runs_in_is_never_replaced(vit_folders, tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(OutputError, match="the folder this runs in"):
        merge(sorted(vit_folders.iterdir()), output=place, force=True)


@pytest.mark.parametrize("name", ["pipe.safetensors", "pipe"])
def test_a_pipe_as_output_is_refused_as_one(tmp_path, name):
    inputs = write(tmp_path, **random_models("x"))
    os.mkfifo(tmp_path / name)

    with pytest.raises(OutputError, match="is a pipe, neither a file nor a folder"):
        merge(inputs, output=tmp_path / name, force=True)


def test_a_dry_run_tells_the_same_and_writes_nothing(tmp_path):
    inputs = write(tmp_path / "in", **random_models("x", "y"))
    output = tmp_path / "new" / "out.safetensors"

    planned = merge(inputs, output=output, dry_run=True)
    existed = output.parent.exists()
    done = merge(inputs, output=output)

    assert not existed
    assert planned.changed_share is None
    assert (planned.merged, planned.nbytes) == (done.merged, done.nbytes) == (3, 43 * 4)


# the recipe


def test_the_recipe_names_method_parameters_and_every_input(vit_files, tmp_path):
    import hashlib

    output = tmp_path / "sub" / "out.safetensors"

    merge(
        [vit_files / "base.safetensors", *experts_of(vit_files)],
        method="ties",
        options={"density": "0.5"},
        exclude=["*.layernorm.*"],
        dtype="float16",
        output=output,
    )

    recipe = recipe_of(output)
    assert recipe["command"] == "merge"
    assert recipe["parameters"] == {
        "method": "ties",
        "density": 0.5,
        "lam": 1.0,
        "aggregate": "mean",
        "scope": "global",
        "exclude": ["*.layernorm.*"],
        "dtype": "float16",
    }
    assert recipe["tasks"] == list(CLASSES)
    assert recipe["heads"] == ["classifier.bias", "classifier.weight"]
    for item, name in zip([recipe["base"], *recipe["inputs"]], ["base", *CLASSES], strict=True):
        file = vit_files / f"{name}.safetensors"
        assert item["name"] == name
        assert (output.parent / item["path"]).resolve() == file.resolve()
        assert item["files"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_recipe_that_is_no_recipe_is_an_error_of_its_file(tmp_path):
    models = random_models("x")
    inputs = write(tmp_path, **models)
    for text in ("[]", "{", '{"command":"task-vector"}', '{"a":' * 5000):
        save_file(models["x"], inputs[1], metadata={"moma": text})

        with pytest.raises(MomaError, match=r"x\.safetensors"):
            merge(inputs, output=tmp_path / "out.safetensors")


# the device


def test_the_task_vectors_of_methods_of_matrices_go_to_the_device(tmp_path, monkeypatch):
    paths = write(tmp_path, **random_models("one", "two"))
    original, devices = torch.Tensor.to, []

    def watched(self, *arguments, **options):
        devices.append(arguments[0])
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", watched)

    merge(paths, method="iso-c", device="cpu:0")

    assert devices.count("cpu:0") == 3  # one for each tensor


def test_a_device_is_refused_where_it_would_be_ignored_or_is_not_there(tmp_path):
    paths = write(tmp_path, **random_models("one", "two"))

    with pytest.raises(UsageError, match="entry by entry"):
        merge(paths, method="ties", device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(MomaError, match="no usable CUDA device"):
            merge(paths, method="iso-c", device="cuda")


ON_MATRICES = sorted(name for name in method_names() if load_method(name).computes_on_matrices)


@pytest.mark.parametrize("method", ON_MATRICES)
def test_on_another_device_matrices_stay_there_until_they_are_merged(tmp_path, method):
    paths = write(tmp_path, **random_models("one", "two"))
    here = merge(paths, method=method, output=tmp_path / "cpu.safetensors")

    with PretendedDevice() as device:
        there = merge(paths, method=method, device=str(DEVICE), output=tmp_path / "a.safetensors")

    expected = load_file(here.output)
    assert device.calls > 10
    for key, value in load_file(there.output).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ON_MATRICES)
def test_a_gpu_gives_the_merge_of_the_processor(tmp_path, method):
    paths = write(tmp_path, **random_models("one", "two"))

    there = merge(paths, method=method, device="cuda", output=tmp_path / "gpu.safetensors")
    here = merge(paths, method=method, output=tmp_path / "cpu.safetensors")

    expected = load_file(here.output)
    for key, value in load_file(there.output).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
