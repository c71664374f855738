"""Models of open_clip, from base and experts to aligned models that open_clip loads by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from pickled import as_plain, as_zip, module_for_now, pickled_head
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES
from torch import nn

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.checkpoint.header import TensorEntry
from momacli.convert import convert
from momacli.errors import ConflictError, ModelError
from momacli.evaluate import evaluate
from momacli.head import head
from momacli.merge import merge
from momacli.models.open_clip import OpenClipTower, build_model, image_transform

VISION = {"image_size": 8, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
MODEL = {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
CONFIG = {"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]}}
WIDTH = 12


def base_model() -> nn.Module:
    torch.manual_seed(0)
    return open_clip.CLIP(**MODEL).eval()


def fine_tuned(task: str) -> nn.Module:
    """A copy whose image encoder was moved a little."""
    model = base_model()
    torch.manual_seed(sorted(CLASSES).index(task) + 1)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    return model


def head_of(task: str) -> torch.Tensor:
    torch.manual_seed(sorted(CLASSES).index(task) + 11)
    return 20 * nn.functional.normalize(torch.randn(len(CLASSES[task]), WIDTH), dim=1)


def save_folder(folder: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def image_part(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.visual.state_dict())


def prefixed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"module.{key}": value for key, value in model.state_dict().items()}


class ImageEncoder(nn.Module):
    """Like that of task_vectors: a CLIP without the layers of its text encoder."""

    def __init__(self, model: nn.Module):
        super().__init__()
        del model.transformer
        self.model = model


def as_folders(
    parts: Callable[[nn.Module], dict[str, torch.Tensor]], name: str
) -> Callable[[], None]:
    def make() -> None:
        save_folder(Path("base"), whole(base_model()), name)
        for task in CLASSES:
            folder = Path("experts", task)
            save_folder(folder, parts(fine_tuned(task)), name)
            metadata = {"classes": json.dumps(CLASSES[task])}
            save_file({"weight": head_of(task)}, folder / f"head_{task}.safetensors", metadata)

    return make


def as_pickles() -> None:
    """Whole pickled modules, with heads, converted."""
    root = Path("ViT-tiny")
    with module_for_now("src.modeling", ImageEncoder=ImageEncoder):
        contents = {"zeroshot.pt": as_plain(ImageEncoder(base_model()))}
        for task in CLASSES:
            contents[f"{task}/finetuned.pt"] = as_zip(ImageEncoder(fine_tuned(task)))
            contents[f"head_{task}.pt"] = pickled_head(head_of(task))
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    Path("open_clip_config.json").write_text(json.dumps(CONFIG))
    convert(["ViT-tiny"], output="experts", config="open_clip_config.json")
    Path("experts/zeroshot").rename("base")


KINDS: dict[str, Callable[[], None]] = {
    "whole models": as_folders(whole, "open_clip_model.safetensors"),
    "image encoders": as_folders(image_part, "model.safetensors"),
    "wrapped models": as_folders(prefixed, "model.safetensors"),
    "pickled modules": as_pickles,
}


def embeddings(folder: Path, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """Image embeddings by open_clip alone, strictly loaded."""
    if kind == "whole models":
        model: Any = open_clip.create_model(f"local-dir:{folder}")
    else:
        model = open_clip.CLIP(**MODEL)
        tensors = load_file(folder / "model.safetensors")
        if kind == "image encoders":
            model.visual.load_state_dict(tensors, strict=True)
        else:
            outer = nn.Module()
            if kind == "pickled modules":
                del model.transformer
                outer.model = model
            else:
                outer.module = model
            outer.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return model.eval().encode_image(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_aligned_and_loaded_by_open_clip(kind, tmp_path, monkeypatch, vit_images):
    monkeypatch.chdir(tmp_path)
    KINDS[kind]()
    report = merge([f"experts/{task}" for task in CLASSES], base="base")
    settings = Settings(steps=6, batch_size=4)
    aligned = align(data=vit_images / "unlabeled", settings=settings, cache="cache")
    absorb("merged", "aligned/alignment.safetensors", output="absorbed")
    transforms = load_file("aligned/alignment.safetensors")
    pixels = torch.randn(5, 3, 8, 8)

    assert report.carried == len(CLASSES) * (2 if kind == "pickled modules" else 1)
    for task in CLASSES:
        z = embeddings(Path("aligned", task), kind, pixels)
        after = load_file(f"aligned/{task}/head_{task}.safetensors")["weight"]
        A = transforms[f"transform.{task}"]
        rotated = nn.functional.normalize(z @ A.mT, dim=1) @ head_of(task).mT
        plain = nn.functional.normalize(z, dim=1) @ after.mT
        torch.testing.assert_close(plain, rotated, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(len(A))).abs().max() > 1e-4
        assert aligned.tasks[task].logit_difference < 1e-5
        assert aligned.tasks[task].objective_after <= aligned.tasks[task].objective_before
        config = json.loads(Path("aligned", task, "open_clip_config.json").read_text())
        assert {key: config[key] for key in CONFIG} == CONFIG
        assert not Path("aligned", task, "config.json").exists()
        for name in ("model", f"head_{task}"):
            again = load_file(f"absorbed/{task}/{name}.safetensors")
            for key, value in load_file(f"aligned/{task}/{name}.safetensors").items():
                assert torch.equal(again[key], value)
    sizes = {task: sum(value.numel() for value in file.values()) for task, file in {
        task: load_file(f"experts/{task}/head_{task}.safetensors")
        | load_file(next(Path(f"experts/{task}").glob("*model.safetensors")))
        for task in CLASSES
    }.items()}  # fmt: skip
    assert aligned.parameters == sizes


def test_accuracy_is_that_of_open_clip_with_its_own_preparation(tmp_path, monkeypatch, vit_images):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    KINDS["whole models"]()
    report = evaluate(["experts"], data=vit_images / "labeled")

    for task, classes in CLASSES.items():
        folder = f"local-dir:experts/{task}"
        model, _, prepare = open_clip.create_model_and_transforms(folder)
        files = sorted((vit_images / "labeled" / task).glob("*/*.png"))
        pixels = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
        with torch.no_grad():
            z = model.eval().encode_image(pixels, normalize=True)
        answers = [classes[number] for number in (z @ head_of(task).mT).argmax(dim=1)]
        expected = sum(a == file.parent.name for a, file in zip(answers, files, strict=True))
        assert report.scores["experts"][task].correct == expected


def test_a_folder_of_converted_experts_is_evaluated_without_its_base(
    tmp_path, monkeypatch, vit_images
):
    monkeypatch.chdir(tmp_path)
    KINDS["pickled modules"]()
    Path("base").rename("experts/zeroshot")
    data = tmp_path / "labeled"
    for task, classes in CLASSES.items():  # such heads know their classes by number
        for number, name in enumerate(classes):
            (data / task).mkdir(parents=True, exist_ok=True)
            (data / task / str(number)).symlink_to(vit_images / "labeled" / task / name)

    report = evaluate(["experts"], data=data)

    assert {score.total for score in report.scores["experts"].values()} == {40}
    with pytest.raises(ConflictError, match="does not say what it was merged from"):
        align("experts/birds", data=data)


@pytest.mark.parametrize("kind", ["whole models", "wrapped models"])
def test_a_head_is_open_clips_own_zero_shot_classifier_times_the_scale(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = whole if kind == "whole models" else prefixed
    model = base_model()
    save_folder(Path("clip"), tensors(model), "open_clip_model.safetensors")
    names, templates = ["annual crop land", "forest", "river"], ["a photo of {}.", "the {}!"]
    report = head("clip", classes=names, templates=templates, output="head_x.safetensors")
    tokenizer = open_clip.get_tokenizer("local-dir:clip")
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates)

    found = load_file("head_x.safetensors")
    with torch.no_grad():
        scaled = model.logit_scale.exp() * expected.T
    assert report.width == WIDTH
    torch.testing.assert_close(found["weight"], scaled, atol=1e-5, rtol=1e-5)


def test_a_model_without_its_text_encoder_makes_no_head(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    KINDS["pickled modules"]()

    with pytest.raises(ModelError, match="no text encoder"):
        head("base", classes=["a", "b"], output="head_x.safetensors")


RESNET = {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}


@pytest.mark.parametrize(("changed", "kind"), [({}, "CustomTextCLIP"), (RESNET, "CLIP")])
def test_other_networks_of_open_clip_have_its_features(changed, kind):
    cfg = {**MODEL, **changed}
    model = getattr(open_clip, kind)(**cfg).eval()
    state = model.state_dict()
    entries = {key: TensorEntry(key, "F32", tuple(v.shape), 0, 0) for key, v in state.items()}
    config = {"model_cfg": {**cfg, "custom_text": kind == "CustomTextCLIP"}}
    tower = OpenClipTower(config, entries)
    tower.load_encoder(lambda key: state[key])
    size = cfg["vision_cfg"]["image_size"]
    pixels = torch.randn(3, 3, size, size)

    with torch.no_grad():
        found = tower.features({"pixel_values": pixels})
        torch.testing.assert_close(found, model.encode_image(pixels))
    assert {key for key in state if key.startswith("visual.")} == {
        *tower.parameters,
        *tower.buffers,
    }


def test_the_activation_of_openai_is_heeded():
    names = list(base_model().state_dict())
    plain = {**CONFIG, "model_cfg": {**MODEL, "quick_gelu": False}}
    kinds = [
        {type(part).__name__ for part in build_model(config, names).modules()}
        for config in (CONFIG, plain)
    ]

    assert ["QuickGELU" in kind for kind in kinds] == [True, False]


def test_images_are_prepared_as_open_clip_does_it():
    from PIL import Image

    torch.manual_seed(0)
    config = {**CONFIG, "preprocess_cfg": {**CONFIG["preprocess_cfg"], "resize_mode": "squash"}}
    pixels = (torch.rand(20, 31, 3) * 255).to(torch.uint8).numpy()
    expected = open_clip.image_transform(
        8, False, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1), resize_mode="squash"
    )

    image = Image.fromarray(pixels)
    assert torch.equal(image_transform(config)[0](image), expected(image))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text_cfg": {"hf_model_name": "roberta-base"}, "custom_text": True}, "download"),
        ({"multimodal_cfg": {}}, "not of a model"),
        ({"vision_cfg": {**VISION, "unknown": 1}}, "cannot build"),
        ({"text_cfg": None}, "not of a model"),
    ],
)
def test_what_cannot_be_built_offline_is_refused(changed, words):
    with pytest.raises(ModelError, match=words):
        build_model({"model_cfg": {**MODEL, **changed}}, ["visual.proj", "text.proj.weight"])


def test_an_image_encoder_is_built_whatever_its_text_encoder_was():
    changed = {"text_cfg": {"hf_model_name": "roberta-base"}, "custom_text": True}
    model = build_model({"model_cfg": {**MODEL, **changed}}, ["visual.proj"])

    assert {name.split(".")[0] for name in model.state_dict()} == {"visual"}
