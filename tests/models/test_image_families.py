"""Each family of image classifiers from base and experts to aligned models, and back in its own."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_images import IMAGE_CONFIGS
from tiny_models import CLASSES

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.merge import merge
from momacli.models.factory import quiet

BASES = {"ViT": "Model", "Dinov2": "Model", "ResNet": "Model"}
"""Families whose base is saved without a classifier here, and so without the prefix."""


@pytest.fixture(params=IMAGE_CONFIGS)
def family(request, tmp_path, monkeypatch):
    """A family's name, in a folder with base/ and an expert for each task."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = IMAGE_CONFIGS[request.param]
    kind = getattr(transformers, f"{request.param}ForImageClassification")
    base = kind(config)
    saved = base
    if request.param in BASES:
        saved = base.base_model
        saved.config.architectures = None
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    with quiet():
        saved.save_pretrained("base")
    processor.save_pretrained("base")
    encoder = dict(base.base_model.named_parameters())
    for seed, (task, classes) in enumerate(CLASSES.items(), start=1):
        own = copy.deepcopy(config)
        own.id2label = dict(enumerate(classes))
        own.label2id = {label: n for n, label in enumerate(classes)}
        expert = kind(own)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in expert.base_model.named_parameters():
                parameter.copy_(encoder[name] + 0.05 * torch.randn(parameter.shape))
            for name, buffer in expert.named_buffers():
                if "running" in name:
                    buffer.add_(0.1 * torch.rand(buffer.shape))
        with quiet():
            expert.save_pretrained(task)
        processor.save_pretrained(task)
    return request.param


def loaded(folder: Path) -> transformers.PreTrainedModel:
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_aligned_models_load_in_transformers_and_answer_with_the_rotated_features(
    family, vit_images
):
    merge(list(CLASSES), base="base")
    settings = Settings(steps=4, batch_size=4)
    report = align(data=vit_images / "unlabeled", settings=settings, cache="cache")
    transforms = load_file("aligned/alignment.safetensors")
    pixels = torch.randn(4, 3, 8, 8)

    for task, classes in CLASSES.items():
        model, expert = loaded(Path("aligned", task)), loaded(Path(task))
        A = transforms[f"transform.{task}"]
        with torch.no_grad():
            found = model(pixel_values=pixels).logits
            model.classifier.load_state_dict(expert.classifier.state_dict())
            linear = next(m for m in model.classifier.modules() if isinstance(m, torch.nn.Linear))
            linear.register_forward_pre_hook(lambda _, given, A=A: (given[0] @ A.mT,))
            expected = model(pixel_values=pixels).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(len(A))).abs().max() > 1e-5
        assert model.num_parameters() == expert.num_parameters()
        stored = load_file(f"{task}/model.safetensors").values()
        assert report.parameters[task] == sum(value.numel() for value in stored)
        assert tuple(model.config.id2label.values()) == classes
        assert report.tasks[task].logit_difference < 1e-5


@pytest.mark.parametrize("family", ["ResNet"], indirect=True)
def test_running_statistics_are_merged_like_weights_and_left_alone_by_the_mask(family, vit_images):
    merge(list(CLASSES), base="base", method="average")
    align(
        data=vit_images / "unlabeled",
        settings=Settings(steps=4, batch_size=4),
        cache="cache",
    )
    experts = [load_file(f"{task}/model.safetensors") for task in CLASSES]
    merged = load_file("merged/cats/model-00001-of-00002.safetensors")
    aligned = load_file("aligned/cats/model-00001-of-00002.safetensors")

    statistics = [name for name in merged if "running_" in name]
    assert statistics
    for name in statistics:
        mean = torch.stack([expert[name] for expert in experts]).mean(dim=0)
        torch.testing.assert_close(merged[name], mean)
        assert torch.equal(aligned[name], merged[name])
