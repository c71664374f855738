"""Recipes and records, from files to files."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import CLASSES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.errors import CheckpointError, ConflictError, UsageError
from momacli.merge import merge
from momacli.merge_recipe import merge_like, merge_recipe
from momacli.progress import Notice
from momacli.recipes.rules import Rule

NAMES = ("base", "a", "b", "c")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a base and three experts of three layers, and an integer tensor."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (6, 4), "norm.weight": (4,)}
    shapes |= {f"layers.{n}.{kind}.weight": (4, 4) for n in range(3) for kind in ("attn", "mlp")}
    base = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for name in NAMES:
        moved = {
            key: value + (name != "base") * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
        save_file({**moved, "ids": torch.arange(3)}, tmp_path / f"{name}.safetensors")
    return tmp_path


def models(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{name}.safetensors") for name in NAMES]


def run(folder: Path, text: str, name: str = "recipe.toml") -> dict[str, Tensor]:
    (folder / name).write_text(text, encoding="utf-8")
    merge_recipe(folder / name, output=folder / "out.safetensors")
    return load_file(folder / "out.safetensors")


def recipe_of(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["moma"])


def assert_equal(merged: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(dict(merged), dict(expected))


# recipe.toml


def test_a_recipe_gives_the_bytes_that_the_command_line_gives(folder):
    text = """
    method = "ties"
    base = "base.safetensors"
    inputs = ["a.safetensors", "b.safetensors"]
    density = 0.5
    weights = [1, 2]
    exclude = ["norm.*"]
    output = "out.safetensors"
    """
    (folder / "recipe.toml").write_text(text)

    report = merge_recipe(folder / "recipe.toml")

    assert report.output == folder / "out.safetensors"
    merge(
        [folder / "a.safetensors", folder / "b.safetensors"],
        base=folder / "base.safetensors",
        method="ties",
        options={"density": 0.5},
        weights=[1, 2],
        exclude=["norm.*"],
        output=folder / "same.safetensors",
    )
    assert (folder / "same.safetensors").read_bytes() == report.output.read_bytes()


def test_rules_give_tensors_options_and_weights_of_their_own_and_the_last_wins(folder):
    merged = run(
        folder,
        """
        base = "base.safetensors"
        inputs = ["a.safetensors", "b.safetensors"]
        lambda = 1
        weights = { a = 2 }
        rules = [
          { tensors = "layers.*", lambda = 0.5 },
          { tensors = ["layers.1.*", "norm.weight"], weights = { b = 0 } },
          { tensors = "layers.2.mlp.weight", lambda = 0 },
        ]
        """,
    )

    base, a, b, _ = models(folder)
    expected = {key: 2 * (a[key] - base[key]) + (b[key] - base[key]) for key in base}
    for key in expected:
        if key.startswith("layers.1.") or key == "norm.weight":
            expected[key] = 2 * (a[key] - base[key])
        lam = 0.5 if key.startswith("layers.") else 1
        expected[key] = base[key] + (0 if key == "layers.2.mlp.weight" else lam) * expected[key]
    assert_equal(merged, expected)


def test_a_density_of_its_own_makes_the_tensors_a_vector_of_their_own(folder):
    merged = run(
        folder,
        """
        method = "ties"
        base = "base.safetensors"
        inputs = ["a.safetensors", "b.safetensors"]
        density = 1.0
        [[rules]]
        tensors = "layers.*"
        density = 0.1
        """,
    )

    base, *_ = models(folder)
    layers = [key for key in base if key.startswith("layers.")]
    changed = sum(int((merged[key] != base[key]).sum()) for key in layers)
    size = sum(base[key].numel() for key in layers)
    assert int(0.1 * size) <= changed <= 2 * int(0.1 * size)
    assert (merged["embed.weight"] != base["embed.weight"]).all()


def test_a_chain_gives_what_its_steps_give_one_after_the_other(folder):
    merged = run(
        folder,
        """
        base = "base.safetensors"
        [[steps]]
        name = "two"
        method = "ties"
        density = 0.4
        inputs = ["a.safetensors", "b.safetensors"]
        [[steps]]
        method = "dare"
        drop-rate = 0.5
        inputs = ["two", "c.safetensors"]
        """,
    )

    inputs = [folder / "a.safetensors", folder / "b.safetensors"]
    merge(
        inputs,
        base=folder / "base.safetensors",
        method="ties",
        options={"density": 0.4},
        output=folder / "two.safetensors",
    )
    merge(
        [folder / "two.safetensors", folder / "c.safetensors"],
        base=folder / "base.safetensors",
        method="dare",
        options={"drop_rate": 0.5},
        output=folder / "after.safetensors",
    )
    assert_equal(merged, load_file(folder / "after.safetensors"))
    assert not {path.name for path in folder.iterdir()} & {"two", "merged"}


def test_a_chain_rounds_once_where_files_between_would_round_twice(folder):
    for name, model in zip(NAMES, models(folder), strict=True):
        half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in model.items()}
        save_file(half, folder / f"{name}.safetensors")

    merged = run(
        folder,
        """
        base = "base.safetensors"
        [[steps]]
        name = "two"
        lambda = 0.3
        inputs = ["a.safetensors", "b.safetensors"]
        [[steps]]
        lambda = 0.7
        inputs = ["two", "c.safetensors"]
        """,
    )

    base, a, b, c = ({k: v.double() for k, v in model.items()} for model in models(folder))
    for key in base:
        two = 0.3 * (a[key] + b[key] - 2 * base[key])
        exact = base[key] + 0.7 * (two + c[key] - base[key])
        if key != "ids":
            assert merged[key].dtype == torch.bfloat16
            assert torch.equal(merged[key], exact.float().bfloat16())


def test_a_step_may_be_the_base_of_the_next(folder):
    merged = run(
        folder,
        """
        [[steps]]
        name = "start"
        lambda = 0.5
        base = "base.safetensors"
        inputs = ["a.safetensors"]
        [[steps]]
        lambda = 0.5
        base = "start"
        inputs = ["b.safetensors"]
        exclude = ["norm.*"]
        """,
    )

    base, a, b, _ = models(folder)
    start = {key: base[key] + 0.5 * (a[key] - base[key]) for key in base}
    expected = {key: start[key] + 0.5 * (b[key] - start[key]) for key in base}
    expected |= {"norm.weight": start["norm.weight"], "ids": base["ids"]}
    assert_equal(merged, expected)


def test_the_result_of_a_chain_carries_the_heads_of_all_its_experts(vit_files, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        f"""
        base = "{vit_files}/base.safetensors"
        [[steps]]
        name = "two"
        inputs = ["{vit_files}/cats.safetensors", "{vit_files}/dogs.safetensors"]
        [[steps]]
        inputs = ["two", "{vit_files}/birds.safetensors"]
        """
    )

    report = merge_recipe(tmp_path / "recipe.toml", output=tmp_path / "models")

    assert set(report.tasks) == set(CLASSES)
    assert {path.name for path in (tmp_path / "models").iterdir()} == set(CLASSES)
    for task in CLASSES:
        found = load_file(tmp_path / "models" / task / "model-00002-of-00002.safetensors")
        expert = load_file(vit_files / f"{task}.safetensors")
        assert found.keys() == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(value, expert[key]) for key, value in found.items())


def test_a_rule_that_matches_no_tensor_is_misspelt(folder):
    with pytest.raises(UsageError, match="matches no tensor"):
        run(
            folder,
            """
            base = "base.safetensors"
            inputs = ["a.safetensors"]
            rules = [{ tensors = ["layer.*"], lambda = 1 }]
            """,
        )


# mergekit's configurations; tests/methods/test_against_mergekit.py compares with mergekit itself


def yaml(folder: Path, text: str) -> dict[str, Tensor]:
    return run(folder, text, "mergekit.yml")


def test_filters_and_gradients_give_each_layer_its_own_weight(folder):
    merged = yaml(
        folder,
        """
        merge_method: task_arithmetic
        base_model: base.safetensors
        models:
          - model: base.safetensors
          - model: a.safetensors
            parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 0.25}]}
          - model: b.safetensors
            parameters: {weight: 2.5e-1}
        parameters: {lambda: 2, normalize: false, int8_mask: true}
        dtype: float32
        """,
    )

    base, a, b, _ = models(folder)
    expected = {}
    for key in base:
        weight = {"0": 0.0, "1": 0.5, "2": 1.0}[key.split(".")[1]] if "mlp" in key else 0.25
        tau = weight * (a[key] - base[key]) + 0.25 * (b[key] - base[key])
        expected[key] = base[key] + (0 if key == "ids" else 2) * tau
    assert_equal(merged, {key: value.to(base[key].dtype) for key, value in expected.items()})


def test_layers_of_two_models_are_stacked_and_numbered_anew(folder):
    merged = yaml(
        folder,
        """
        merge_method: passthrough
        slices:
          - sources: [{model: a.safetensors, layer_range: [0, 2]}]
          - sources: [{model: b.safetensors, layer_range: [1, 3]}]
        """,
    )

    _, a, b, _ = models(folder)
    expected = {"embed.weight": a["embed.weight"], "norm.weight": b["norm.weight"], "ids": b["ids"]}
    for kind in ("attn", "mlp"):
        for new, (model, old) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
            expected[f"layers.{new}.{kind}.weight"] = model[f"layers.{old}.{kind}.weight"]
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[key], value) for key, value in expected.items())


def test_folders_of_models_give_one_folder_that_says_what_it_is(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        shutil.move(folder / f"{name}.safetensors", folder / name / "model.safetensors")
        config = {"num_hidden_layers": 3, "torch_dtype": "float32", "layer_types": ["x", "y", "z"]}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "tokenizer.json").write_text("{}")
    (folder / "mergekit.yml").write_text(
        """
        merge_method: linear
        slices:
          - sources:
            - {model: a, layer_range: [1, 3], parameters: {weight: 1}}
            - {model: b, layer_range: [0, 2], parameters: {weight: 3}}
        out_dtype: bfloat16
        tokenizer_source: base
        """
    )

    merge_recipe(folder / "mergekit.yml", output=folder / "out")

    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    config = json.loads((folder / "out" / "config.json").read_text())
    assert config == {
        "num_hidden_layers": 2,
        "torch_dtype": "bfloat16",
        "layer_types": ["y", "z"],
    }
    merged = load_file(folder / "out" / "model.safetensors")
    a, b = (load_file(folder / name / "model.safetensors") for name in ("a", "b"))
    mixed = 0.25 * a["layers.2.mlp.weight"] + 0.75 * b["layers.1.mlp.weight"]
    torch.testing.assert_close(merged["layers.1.mlp.weight"], mixed.bfloat16())


def test_a_model_of_the_hub_is_taken_from_the_cache_where_it_is(folder, monkeypatch):
    snapshot = folder / "cache" / "models--someone--tuned" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    shutil.move(folder / "a.safetensors", snapshot / "model.safetensors")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0a1b")
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))

    merged = yaml(
        folder,
        "merge_method: passthrough\nmodels: [{model: someone/tuned, parameters: {scale: 2}}]",
    )

    expected = load_file(snapshot / "model.safetensors")
    assert_equal(merged, {key: (key == "ids" or 2) * value for key, value in expected.items()})


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_random_methods_keep_a_share_and_the_same_in_every_run(folder, method):
    text = f"""
    merge_method: {method}
    base_model: base.safetensors
    models: [{{model: a.safetensors}}, {{model: b.safetensors}}]
    parameters: {{weight: 0.5, density: 0.4, epsilon: 0.1}}
    """

    first, second = yaml(folder, text), yaml(folder, text)

    base, *_ = models(folder)
    moved = sum(int((first[key] != base[key]).sum()) for key in base) / 124
    assert 0.3 < moved < 0.95
    assert all(torch.equal(value, second[key]) for key, value in first.items())


MODELS = "models: [{model: a.safetensors}, {model: b.safetensors}]\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("merge_method: ram\n" + MODELS, UsageError, "merge_method ram is not supported"),
        ("merge_method: ties\n" + MODELS, UsageError, "ties needs a base_model"),
        ("merge_method: linear\n" + MODELS, UsageError, "weight of a: nothing is given"),
        ("merge_methd: linear\n" + MODELS, UsageError, "unknown key merge_methd"),
        (
            "merge_method: linear\nparameters: {wieght: 1}\n" + MODELS,
            UsageError,
            "did you mean weight",
        ),
        (
            "merge_method: linear\nparameters: {weight: yes}\n" + MODELS,
            UsageError,
            "expected a finite number, found True",
        ),
        (
            "merge_method: linear\nparameters: {weight: {filter: x}}\n" + MODELS,
            UsageError,
            "expected a value",
        ),
        ("merge_method: linear", UsageError, "exactly one of models and slices"),
        ("merge_method: linear\nmodules: {default: {}}", UsageError, "modules is not supported"),
        (
            "merge_method: linear\ntokenizer_source: union\n" + MODELS,
            UsageError,
            "a tokenizer from union is not supported",
        ),
        (
            "merge_method: linear\nmodels: [{model: mistralai/Mistral-7B-v0.1}]",
            CheckpointError,
            "moma downloads nothing",
        ),
        (
            "merge_method: linear\nmodels: [{model: a.safetensors+lora}]",
            UsageError,
            "adds an adapter",
        ),
        (
            "merge_method: passthrough\n"
            "slices: [{sources: [{model: a.safetensors, layer_range: [0, 4]}]}]",
            ConflictError,
            "has 3 layers",
        ),
        (
            "merge_method: ties\nbase_model: base.safetensors\n"
            "parameters: {weight: 1, density: 0.5, rescale: true}\n" + MODELS,
            UsageError,
            "rescale: true is not supported",
        ),
    ],
)
def test_what_a_configuration_asks_in_vain_is_named(folder, text, error, message):
    with pytest.raises(error) as caught:
        yaml(folder, text)

    assert message in str(caught.value)


def test_a_parameter_of_another_method_is_told_to_have_no_effect(folder):
    (folder / "mergekit.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1, density: 0.5}\n" + MODELS
    )
    events = []

    merge_recipe(folder / "mergekit.yml", output=folder / "o.safetensors", listener=events.append)

    notices = [event.text for event in events if isinstance(event, Notice)]
    assert any("linear takes no density" in text for text in notices)


# --like


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ties", "options": {"density": 0.3}, "scope": "tensor", "weights": {"b": 2}},
        {"method": "dare", "seed": 7, "options": {"then": "ties"}, "exclude": ["norm.*"]},
        {"method": "slerp", "dtype": "bfloat16"},
        {"rules": [Rule(("layers.*",), {"lam": 0.1}, {"a": 3.0})]},
    ],
    ids=lambda options: options.get("method", "rules"),
)
def test_a_merge_repeated_from_its_record_gives_the_same_bytes(folder, options):
    merge(
        [folder / "b.safetensors", folder / "a.safetensors"],
        base=folder / "base.safetensors",
        output=folder / "out.safetensors",
        **options,
    )

    merge_like(folder / "out.safetensors", output=folder / "again.safetensors")

    again = (folder / "again.safetensors").read_bytes()
    assert again == (folder / "out.safetensors").read_bytes()


CHAIN = """
base = "base.safetensors"
[[steps]]
name = "two"
inputs = ["a.safetensors", "b.safetensors"]
rules = [{ tensors = "layers.0.*", weights = [2, 3] }]
[[steps]]
inputs = ["two", "c.safetensors"]
"""
SLICES = """
merge_method: ties
base_model: base.safetensors
slices:
  - sources:
    - {model: base.safetensors, layer_range: [0, 2]}
    - {model: a.safetensors, layer_range: [1, 3], parameters: {density: 0.5, weight: 1}}
    - {model: b.safetensors, layer_range: [0, 2], parameters: {density: 0.2, weight: [0, 1]}}
"""


@pytest.mark.parametrize(("text", "name"), [(CHAIN, "recipe.toml"), (SLICES, "m.yaml")])
def test_chains_and_slices_are_repeated_too(folder, text, name):
    run(folder, text, name)
    (folder / name).unlink()
    before = (folder / "out.safetensors").read_bytes()

    merge_like(folder / "out.safetensors")

    assert (folder / "out.safetensors").read_bytes() == before


def test_a_folder_of_models_is_repeated_with_the_config_it_was_given(vit_files, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in vit_files.glob("*.safetensors"):
        shutil.copyfile(path, bare / path.name)
    merge(
        sorted(bare.glob("*.safetensors")),
        config=vit_files / "config.json",
        output=tmp_path / "out",
    )

    merge_like(tmp_path / "out", output=tmp_path / "again")

    files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*")
    )
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_an_input_that_has_changed_is_refused_and_the_output_kept(folder):
    run(folder, CHAIN)
    before = (folder / "out.safetensors").read_bytes()
    shutil.copyfile(folder / "a.safetensors", folder / "c.safetensors")

    with pytest.raises(ConflictError) as caught:
        merge_like(folder / "out.safetensors")

    assert f"{folder / 'c.safetensors'} is not what" in caught.value.message
    assert (folder / "out.safetensors").read_bytes() == before


def test_what_no_merge_wrote_cannot_be_repeated(folder):
    with pytest.raises(CheckpointError, match="not the result of a merge: moma did not write it"):
        merge_like(folder / "a.safetensors")


@pytest.mark.parametrize(
    "odd",
    [
        {"recipe": {"steps": [], "as_one_model": False}, "files": []},
        {"recipe": {"steps": [{}], "as_one_model": False}, "files": []},
        {"recipe": 3, "files": 4},
        {"method": ["ties"], "weights": 3},
        {"rules": [{"tensors": 1}]},
    ],
)
def test_a_record_that_was_tampered_with_is_refused(folder, odd):
    run(folder, 'base = "base.safetensors"\ninputs = ["a.safetensors"]')
    recipe = recipe_of(folder / "out.safetensors")
    recipe["parameters"] |= odd
    metadata = {"moma": json.dumps(recipe)}
    save_file(load_file(folder / "out.safetensors"), folder / "odd.safetensors", metadata)

    with pytest.raises(CheckpointError, match="its record of how it was made"):
        merge_like(folder / "odd.safetensors")


def test_a_name_in_a_recipe_cannot_lead_out_of_the_output(folder):
    with pytest.raises(UsageError, match="cannot be the name of a task"):
        run(folder, 'base = "base.safetensors"\ninputs = ["../x=a.safetensors"]')
