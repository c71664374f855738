"""CLIP and SigLIP image encoders with zero-shot heads, from base and experts to aligned models."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.errors import ModelError
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.models.factory import quiet

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
KINDS = {  # what experts are saved as: whether their names get the prefix that files on hubs have
    "CLIPVisionModel": False,
    "CLIPVisionModel, older": True,
    "CLIPVisionModelWithProjection": False,
    "CLIPModel": False,
    "SiglipVisionModel": False,
    "SiglipVisionModel, older": True,
}


def base_model(kind: str) -> transformers.PreTrainedModel:
    if kind.startswith("Siglip"):
        config = transformers.SiglipConfig(
            text_config=TEXT | {"projection_size": 16}, vision_config=VISION
        )
        return transformers.SiglipModel(config)
    config = transformers.CLIPConfig(
        text_config=TEXT | {"projection_dim": 12},
        vision_config=VISION | {"projection_dim": 12},
        projection_dim=12,
    )
    return transformers.CLIPModel(config)


@pytest.fixture(params=KINDS)
def place(request, tmp_path, monkeypatch):
    """The kind of the experts, in a folder with base/ and experts/, a head in each expert's."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    kind = request.param.split(",")[0]
    base = base_model(kind)
    with quiet():
        base.save_pretrained("base")
    size = {"height": 8, "width": 8}
    processor = transformers.ViTImageProcessor(size=size)
    processor.save_pretrained("base")
    for task, classes in CLASSES.items():
        expert = getattr(transformers, kind)(
            base.config if kind == "CLIPModel" else base.config.vision_config
        )
        tower = getattr(expert, "vision_model", expert)
        with torch.no_grad():
            expert.load_state_dict(base.state_dict(), strict=False)
            for name, parameter in tower.named_parameters():
                start = base.vision_model.get_parameter(name)
                parameter.copy_(start + 0.05 * torch.randn(parameter.shape))
        folder = Path("experts", task)
        with quiet():
            expert.save_pretrained(folder)
        processor.save_pretrained(folder)
        if KINDS[request.param]:
            file = folder / "model.safetensors"
            older = {f"vision_model.{key}": value for key, value in load_file(file).items()}
            save_file(older, file, metadata={"format": "pt"})
        width = 16 if kind.startswith("Siglip") else 12
        rows = torch.nn.functional.normalize(torch.randn(len(classes), width), dim=1)
        head = {"weight": 20 * rows}
        if kind.startswith("Siglip"):
            head["bias"] = torch.full((len(classes),), -2.0)
        metadata = {"classes": json.dumps(classes)}
        save_file(head, folder / f"head_{task}.safetensors", metadata=metadata)
    return kind


def embeddings(folder: Path, base: Path, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """The image embeddings of a folder as transformers computes them, strictly loaded."""
    if kind.startswith("Siglip"):
        name = "SiglipVisionModel"
    else:
        name = "CLIPModel" if kind == "CLIPModel" else "CLIPVisionModelWithProjection"
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        if kind == "CLIPModel":
            return model.eval().get_image_features(pixel_values=pixels).pooler_output
        output = model.eval()(pixels)
        return output.pooler_output if kind.startswith("Siglip") else output.image_embeds


def test_merged_aligned_and_loaded_again(place, vit_images):
    kind = place
    tasks = [f"experts/{task}" for task in CLASSES]
    report = merge(tasks, base="base")
    settings = Settings(steps=6, batch_size=4)
    aligned = align(data=vit_images / "unlabeled", settings=settings, cache="cache")
    transforms = load_file("aligned/alignment.safetensors")
    pixels = torch.randn(5, 3, 8, 8)

    assert report.carried == len(CLASSES) * (2 if kind.startswith("Siglip") else 1)
    for task in CLASSES:
        z = embeddings(Path("aligned", task), Path("base"), kind, pixels)
        before = load_file(f"experts/{task}/head_{task}.safetensors")
        after = load_file(f"aligned/{task}/head_{task}.safetensors")
        A = transforms[f"transform.{task}"]
        rotated = torch.nn.functional.normalize(z @ A.mT, dim=1) @ before["weight"].mT
        plain = torch.nn.functional.normalize(z, dim=1) @ after["weight"].mT
        torch.testing.assert_close(plain, rotated, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(len(A))).abs().max() > 1e-4
        assert aligned.tasks[task].logit_difference < 1e-5
        assert aligned.tasks[task].objective_after <= aligned.tasks[task].objective_before
        assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}


def test_accuracy_is_counted_with_the_class_names_of_the_head_file(place, vit_images):
    if place == "CLIPVisionModel":  # the experts themselves lack the projection
        with pytest.raises(ModelError, match="12 numbers, the encoder gives 16"):
            evaluate(["experts"], data=vit_images / "labeled")
        merge([f"experts/{task}" for task in CLASSES], base="base")
        models = ["merged"]
    else:
        models = ["experts"]
    report = evaluate(models, data=vit_images / "labeled")

    assert {score.total for score in report.scores[models[0]].values()} == {40}


def test_a_rotated_cosine_head_gives_the_probabilities_of_rotated_features():
    from momacli.models.interface import Head
    from momacli.models.separate_head import unit_norm

    torch.manual_seed(0)
    W, z = 100 * torch.nn.functional.normalize(torch.randn(7, 32), dim=1), torch.randn(64, 32)
    A = torch.linalg.qr(torch.randn(32, 32))[0]
    rotated_features = Head(W, None, before=unit_norm)(z @ A.mT).softmax(dim=1)
    rotated_head = Head(W @ A, None, before=unit_norm)(z).softmax(dim=1)

    torch.testing.assert_close(rotated_head, rotated_features, atol=1e-5, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("method", ["fisher", "regmean++", "adamerging"])
def test_merged_from_samples_with_cosine_heads(place, vit_images, method):
    report = merge(
        [f"experts/{task}" for task in CLASSES],
        base="base",
        method=method,
        data=vit_images / "unlabeled",
        options={"steps": 3} if method == "adamerging" else None,
        reading=Reading(Sampling(count=6)),
        device="cpu",
    )

    assert report.samples == dict.fromkeys(CLASSES, 6)
    for task in CLASSES:
        assert embeddings(Path("merged", task), Path("base"), place, torch.randn(2, 3, 8, 8)).ndim
        assert Path("merged", task, f"head_{task}.safetensors").is_file()
