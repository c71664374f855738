"""PEFT adapters wherever an expert is expected."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import LORA, OFT, lora_tensors, oft_tensors, write_adapter
from tiny_models import CLASSES
from torch import Tensor

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.cli.main import run
from momacli.errors import CheckpointError, ConflictError
from momacli.info import info
from momacli.merge import merge
from momacli.merge_recipe import merge_like
from momacli.progress import Notice
from momacli.task_vector import task_vector
from momacli.verify import verify

QUERIES = [f"vit.encoder.layer.{n}.attention.attention.query" for n in range(2)]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def place(vit_folders: Path, tmp_path: Path) -> Path:
    """A folder with `base`, an encoder alone, and an adapter of each task in `adapters`."""
    shutil.copytree(vit_folders / "base", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["architectures"] = ["ViTModel"]
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    said = {"base_model_class": "ViTForImageClassification"}
    for seed, (task, classes) in enumerate(CLASSES.items()):
        tensors = lora_tensors(QUERIES, seed, 16, 16)
        generator = torch.Generator().manual_seed(seed)
        tensors["classifier.weight"] = torch.randn(len(classes), 16, generator=generator)
        tensors["classifier.bias"] = torch.zeros(len(classes))
        saved = {"auto_mapping": said, "modules_to_save": ["classifier"]}
        write_adapter(tmp_path / "adapters" / task, tensors, LORA, **saved)
    return tmp_path


def whole_models(place: Path) -> list[Path]:
    """The same experts as whole models, put together here."""
    base = load_file(place / "base/model.safetensors")
    for task in CLASSES:
        adapter = load_file(place / "adapters" / task / "adapter_model.safetensors")
        adapter = {k.removeprefix("base_model.model."): v for k, v in adapter.items()}
        tensors = dict(base)
        for module in QUERIES:
            step = adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
            tensors[f"{module}.weight"] = base[f"{module}.weight"] + 3 * step
        tensors |= {k: v for k, v in adapter.items() if k.startswith("classifier.")}
        (place / "whole" / task).mkdir(parents=True)
        save_file(tensors, place / "whole" / task / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((place / "base/config.json").read_text())
        config["architectures"] = ["ViTForImageClassification"]
        config["id2label"] = {str(n): str(n) for n in range(len(CLASSES[task]))}
        (place / "whole" / task / "config.json").write_text(json.dumps(config))
    return sorted((place / "whole").iterdir())


def model_of(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("method", ["average", "ties", "iso-c", "slerp"])
def test_adapters_merge_as_the_models_that_they_make(place, method):
    experts = sorted((place / "adapters").iterdir())
    if method == "slerp":
        experts = experts[:2]
    wholes = [p for p in whole_models(place) if p.name in {e.name for e in experts}]

    merge(experts, base="base", method=method, output="of-adapters")
    merge(wholes, base="base", method=method, output="of-models")

    for folder in sorted(p.name for p in Path("of-models").iterdir() if p.is_dir()):
        found, expected = (model_of(Path(o, folder)) for o in ("of-adapters", "of-models"))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_adapters_and_whole_models_are_experts_of_one_merge(place):
    wholes = whole_models(place)

    merge([wholes[0], "adapters/cats", "adapters/dogs"], base="base", method="average", output="a")
    merge(wholes, base="base", method="average", output="b")

    first, second = model_of(Path("a/cats")), model_of(Path("b/cats"))
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in second)


def test_an_adapter_of_a_bfloat16_base_is_rounded_once(place):
    file = place / "base/model.safetensors"
    base = {key: value.bfloat16() for key, value in load_file(file).items()}
    save_file(base, file, metadata={"format": "pt"})

    merge(["adapters/cats"], base="base", method="average", output="out")

    adapter = load_file("adapters/cats/adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{QUERIES[0]}.lora_{x}.weight"] for x in "AB")
    exact = base[f"{QUERIES[0]}.weight"].double() + 3 * b.double() @ a.double()
    assert torch.equal(model_of(Path("out/cats"))[f"{QUERIES[0]}.weight"], exact.bfloat16())


def test_the_output_records_both_files_of_an_adapter_and_can_be_made_again(place):
    merge(sorted((place / "adapters").iterdir()), base="base", method="ties")
    before = model_of(Path("merged/cats"))

    assert verify("merged").equal
    merge_like("merged")
    assert all(torch.equal(before[k], v) for k, v in model_of(Path("merged/cats")).items())
    recorded = info("merged").origin.inputs[1].files
    assert set(recorded) == {"adapter_model.safetensors", "adapter_config.json"}

    config = place / "adapters/cats/adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    with pytest.raises(ConflictError, match="is not what"):
        verify("merged")


def test_adapters_are_aligned_and_load_without_moma(place, vit_images):
    import transformers

    merge(sorted((place / "adapters").iterdir()), base="base", output="merged")
    unlabeled = vit_images / "unlabeled"
    report = align("merged", data=unlabeled, settings=Settings(steps=3), cache="cache")

    model = transformers.AutoModelForImageClassification.from_pretrained("aligned/dogs")
    assert model.config.num_labels == len(CLASSES["dogs"])
    assert max(one.logit_difference for one in report.tasks.values()) < 1e-4
    assert verify("aligned").equal


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "T5"])
def test_an_adapter_trained_in_a_text_classifier_makes_one_of_a_published_base(tmp_path, family):
    import transformers
    from tiny_text import pretrained_model, text_model

    from momacli.models.factory import quiet

    with quiet():
        text_model(family).save_pretrained("like")
        pretrained_model(family).save_pretrained("base")
    like = load_file("like/model.safetensors")
    saved = {
        key: value + 1
        for key, value in like.items()
        if key.split(".")[0] in ("classifier", "pre_classifier", "classification_head")
    }
    names = [key.removesuffix(".weight") for key in like if key.endswith(_QUERY)]
    tensors = lora_tensors(names, 1, 16, 16) | saved
    modules = ["classifier", "pre_classifier", "classification_head"]
    write_adapter(tmp_path / "a", tensors, LORA, task_type="SEQ_CLS", modules_to_save=modules)

    merge(["a"], base="base", method="average")

    kind = transformers.AutoModelForSequenceClassification
    model, told = kind.from_pretrained("merged/a", output_loading_info=True)
    assert not any(told.values())
    found, base = (
        load_file("merged/a/model-00001-of-00002.safetensors"),
        load_file("base/model.safetensors"),
    )
    key = f"{names[0]}.weight"
    before = next(base[name] for name in (key, key.split(".", 1)[1]) if name in base)
    a, b = (tensors[f"{names[0]}.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(found[key], before + 3 * b @ a)
    assert model.config.num_labels == 3


_QUERY = ("attention.self.query.weight", "attention.q_lin.weight", "SelfAttention.q.weight")


def test_adapters_of_an_image_encoder_of_clip_come_with_zero_shot_heads(tmp_path, vit_images):
    import transformers
    from tiny_text import text_config

    from momacli.models.factory import quiet

    bert = text_config("Bert")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "projection_dim": 12}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": bert.vocab_size, "max_position_embeddings": 16},
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
        projection_dim=12,
    )
    torch.manual_seed(0)
    with quiet():
        transformers.CLIPModel(config).save_pretrained("base")
        size = {"height": 8, "width": 8}
        transformers.ViTImageProcessor(size=size).save_pretrained("base")
    for seed, (task, classes) in enumerate(CLASSES.items()):
        tensors = lora_tensors(["encoder.layers.0.self_attn.q_proj"], seed, 16, 16)
        of = {"auto_mapping": {"base_model_class": "CLIPVisionModel"}}
        folder = write_adapter(tmp_path / "adapters" / task, tensors, LORA, **of)
        head = torch.nn.functional.normalize(torch.randn(len(classes), 12), dim=1)
        save_file({"weight": 100 * head}, folder / f"head_{task}.safetensors")

    merge(sorted((tmp_path / "adapters").iterdir()), base="base")
    report = align(
        "merged", data=vit_images / "unlabeled", settings=Settings(steps=2), cache="cache"
    )

    assert max(one.logit_difference for one in report.tasks.values()) < 1e-3
    assert {path.name for path in Path("aligned/cats").glob("head*")} == {"head_cats.safetensors"}
    assert verify("merged").equal
    text = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model_of(Path("merged/cats"))[text], model_of(Path("base"))[text])


def test_an_adapter_may_call_modules_as_the_built_model_does(place, vit_images):
    """Since version 5, transformers renames on loading, and peft saves what it saw."""
    for folder in sorted((place / "adapters").iterdir()):
        file = folder / "adapter_model.safetensors"
        tensors = {
            key.replace("encoder.layer.", "layers.").replace(
                "attention.attention.query", "attention.q_proj"
            ): value
            for key, value in load_file(file).items()
        }
        shutil.copytree(folder, place / "renamed" / folder.name)
        save_file(tensors, place / "renamed" / folder.name / file.name)

    merge(sorted((place / "renamed").iterdir()), base="base", output="merged")
    merge(sorted((place / "adapters").iterdir()), base="base", output="plain")
    align("merged", data=vit_images / "unlabeled", settings=Settings(steps=1), cache="cache")

    found, expected = model_of(Path("merged/cats")), model_of(Path("plain/cats"))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_task_vector_of_an_adapter_stands_for_it(place):
    adapters = sorted((place / "adapters").iterdir())

    report = task_vector("base", adapters)
    merge(sorted(Path("task-vectors").iterdir()), base="base", output="of-vectors.safetensors")
    merge(adapters, base="base", output="of-adapters.safetensors")

    found, expected = load_file("of-vectors.safetensors"), load_file("of-adapters.safetensors")
    assert {vector.task for vector in report.task_vectors} == set(CLASSES)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[key], expected[key], atol=1e-6) for key in expected)


def test_saved_modules_of_bare_files_are_heads_without_a_config(place):
    shutil.copyfile("base/model.safetensors", "base.safetensors")
    notices = []

    report = merge(
        ["adapters/cats", "adapters/dogs"], base="base.safetensors", listener=notices.append
    )

    merged = load_file(report.output)
    assert merged["heads.cats.classifier.weight"].shape == (3, 16)
    told = [item.text for item in notices if isinstance(item, Notice)]
    assert any("LoRA adapter of rank 2" in line and "hub/of-the-base" in line for line in told)


def test_a_saved_head_of_an_encoder_without_one_is_aligned(place, vit_images):
    for folder in (place / "adapters").iterdir():
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_mapping": None}))

    merge(sorted((place / "adapters").iterdir()), base="base")
    unlabeled, steps = vit_images / "unlabeled", Settings(steps=1)
    report = align("merged", data=unlabeled, settings=steps, pooling="cls", cache="cache")

    assert max(one.logit_difference for one in report.tasks.values()) < 1e-4
    assert model_of(Path("aligned/dogs"))["classifier.weight"].shape == (5, 16)


def test_conflicts_of_all_adapters_are_reported_at_once(place):
    for task in ("cats", "dogs"):
        folder = place / "adapters" / task
        write_adapter(folder, lora_tensors(["no.such"], 0, 16, 16), LORA, use_dora=True)

    with pytest.raises(ConflictError) as error:
        merge(sorted((place / "adapters").iterdir()), base="base")

    assert {line.split(":")[0] for line in error.value.details} == {"cats", "dogs"}
    assert not Path("merged").exists()


def test_an_adapter_is_no_base_and_no_pickle_and_lies_beside_no_model(place):
    with pytest.raises(ConflictError, match="is an adapter"):
        merge(["adapters/cats"], base="adapters/dogs")

    with pytest.raises(CheckpointError, match="folder of adapters"):
        info("adapters")
    with pytest.raises(ConflictError, match="without its adapter_config"):
        merge(["adapters/dogs/adapter_model.safetensors"], base="base")

    shutil.copyfile("base/model.safetensors", "adapters/cats/model.safetensors")
    with pytest.raises(CheckpointError, match="both a model and an adapter"):
        merge(["adapters/cats"], base="base")

    Path("adapters/cats/model.safetensors").unlink()
    Path("adapters/cats/adapter_model.safetensors").unlink()
    torch.save({}, "adapters/cats/adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        merge(["adapters/cats"], base="base")


def test_the_command_line_takes_adapters_and_explains_what_does_not_fit(place, capfd):
    assert run(["merge", "adapters/cats", "adapters/dogs", "--base", "base"]) == 0
    shown = capfd.readouterr()
    assert shown.out == "merged\n"
    assert "LoRA adapter of rank 2, which says it was trained on hub/of-the-base" in shown.err

    write_adapter(place / "adapters/cats", {}, LORA, peft_type="IA3")
    assert run(["merge", "adapters/cats", "adapters/dogs", "--base", "base"]) == 1
    shown = capfd.readouterr()
    assert "peft_type IA3: only LORA and OFT are known" in shown.err
    assert "merge_and_unload" in shown.err

    assert run(["info", "adapters/dogs"]) == 0
    assert "LoRA adapter of rank 2 for hub/of-the-base" in capfd.readouterr().out


# OFT adapters by orthomerge


def oft_adapters(place: Path, *seeds: int, size: float = 0.3, **config: object) -> list[Path]:
    folders = []
    for seed in seeds:
        folder = place / "oft" / f"task{len(folders)}"
        tensors = oft_tensors(QUERIES, seed, 16, size)
        tensors["vit.layernorm.bias"] = torch.full((16,), float(seed))
        folders.append(write_adapter(folder, tensors, OFT, **config))
    return folders


def merged_by(method: str, experts: list[Path], **options: object) -> dict[str, Tensor]:
    output = f"by-{method}.safetensors"
    merge(experts, base="base", method=method, options=options, output=output)
    return load_file(output)


@pytest.mark.parametrize("seeds", [(1,), (1, 1, 1)])
def test_one_oft_adapter_or_equal_ones_give_the_model_that_they_make(place, seeds):
    experts = oft_adapters(place, *seeds, use_cayley_neumann=False)

    merged = merged_by("orthomerge", experts)

    expected = merged_by("average", experts[:1])
    assert all(torch.allclose(merged[key], expected[key], atol=1e-6) for key in expected)
    if len(seeds) == 1:
        assert all(torch.equal(merged[key], expected[key]) for key in expected)


def test_generators_are_summed_at_their_mean_norm_and_turn_the_base(place):
    experts = oft_adapters(place, 1, 2, 3, use_cayley_neumann=False)

    merged = merged_by("orthomerge", experts)

    base = load_file("base/model.safetensors")
    for module in QUERIES:
        files = [load_file(folder / "adapter_model.safetensors") for folder in experts]
        key = f"base_model.model.{module}.oft_R.weight"
        q = torch.zeros(3, 4, 4, 4, dtype=torch.float64)
        rows, columns = torch.triu_indices(4, 4, 1)
        q[..., rows, columns] = torch.stack([file[key] for file in files]).double()
        q = q - q.mT
        total = q.sum(dim=0)
        mean_norm = q.flatten(1).norm(dim=1).mean()
        q = total / total.norm() * mean_norm
        eye = torch.eye(4, dtype=q.dtype)
        r = torch.block_diag(*((eye - q) @ torch.linalg.inv(eye + q)))
        w0 = base[f"{module}.weight"].double()
        w = merged[f"{module}.weight"].double()
        torch.testing.assert_close(w, w0 @ r.T, rtol=0, atol=1e-6)
        torch.testing.assert_close(w @ w.T, w0 @ w0.T, rtol=0, atol=1e-5)  # R is orthogonal
    torch.testing.assert_close(merged["vit.layernorm.bias"], torch.full((16,), 2.0))


def test_the_order_of_oft_adapters_does_not_matter_and_the_merge_can_be_verified(place):
    experts = oft_adapters(place, 1, 2, 3)

    report = merge(experts, base="base", method="orthomerge", output="a.safetensors")
    merge(experts[::-1], base="base", method="orthomerge", output="b.safetensors")

    assert "Lie algebra" in str(report.parameters["rotations"])
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert verify("a.safetensors").equal


def test_oft_adapters_that_are_not_alike_are_merged_as_weights(place):
    experts = oft_adapters(place, 1, 2)
    write_adapter(experts[1], oft_tensors(QUERIES, 2, 16), OFT, use_cayley_neumann=False)
    notices = []

    report = merge(
        experts, base="base", method="orthomerge", output="o.safetensors", listener=notices.append
    )

    assert "variant" in report.parameters
    told = [item.text for item in notices if isinstance(item, Notice)]
    assert any("differ in their blocks or settings" in line for line in told)
