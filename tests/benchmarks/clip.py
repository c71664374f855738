"""A small CLIP of open_clip: pre-trained on images and captions that name their class.

Its image encoder is fine-tuned on one task or all; heads are embeddings of text, as `moma head`
makes them of the base, and stay as they are.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from momacli.demonstration.training import Schedule
from momacli.head import head
from momacli.models.templates import DEFAULT, TEMPLATES
from tests.benchmarks import training
from tests.benchmarks.images import ImagePack, varied, varied_together
from tests.benchmarks.vit import Sizes

_TEMPLATES = {
    "aid": TEMPLATES["eurosat"],
    "digits8": TEMPLATES["mnist"],
    "dtd10": TEMPLATES["dtd"],
    "gtsrb": TEMPLATES["gtsrb"],
    "mnist": TEMPLATES["mnist"],
    "sign_digits": ("a photo of a hand that shows {}.",),
}
NORMALISES = True
"""Whether heads normalise the features."""

_EMBEDDING = 128
_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3}
_LARGEST_SCALE = 100.0


def pre_train(packs: Sequence[ImagePack], sizes: Sizes, schedule: Schedule, output: Path) -> None:
    """Train image and text encoder to find each other, on the packs' share for pre-training.

    A caption that several images of a batch share is right for all of them.
    """
    captions = [
        template.replace("{}", name)
        for pack in packs
        for name in pack.classes
        for template in _templates(pack)[:1]
    ]
    config = _config(sizes)
    model, [tokens] = _random(config), training.moved(_tokens(captions))
    batches = varied_together(packs).batches(schedule.batch_size, seed=0)

    def loss() -> Tensor:
        pixels, labels = training.moved(*next(batches))
        shown, which = labels.unique(return_inverse=True)
        with training.computing():
            images, texts = model.encode_image(pixels), model.encode_text(tokens[shown])
        scale = model.logit_scale.exp().clamp(max=_LARGEST_SCALE)
        logits = scale * normalize(images.float(), dim=-1) @ normalize(texts.float(), dim=-1).mT
        right = nn.functional.one_hot(which, len(shown)).float()  # [images, captions]
        of_caption = cross_entropy(logits.mT, right.mT / right.sum(dim=0)[:, None])
        return (cross_entropy(logits, which) + of_caption) / 2

    training.pre_train(model, schedule, loss)
    output.mkdir(parents=True, exist_ok=True)
    _save(model, config, output / OPEN_CLIP_WEIGHTS)


def train_together(
    base: Path, packs: Mapping[str, ImagePack], schedule: Schedule, seed: int, output: Path
) -> None:
    """Fine-tune one image encoder under the heads of all tasks; writes a model of each, by name.

    Every step takes a batch of each task, and all tasks count alike.
    """
    config = json.loads((base / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    model = _random(config)
    model.load_state_dict(load_file(base / OPEN_CLIP_WEIGHTS))
    heads: dict[str, Tensor] = {}
    for task, pack in packs.items():
        (output / task).mkdir(parents=True)
        file = output / task / f"head_{task}.safetensors"
        head(base, classes=list(pack.classes), templates=_templates(pack), output=file)
        [heads[task]] = training.moved(load_file(file)["weight"])
    encoder: Any = model.visual
    batches = {
        task: varied(pack).batches(schedule.batch_size, seed) for task, pack in packs.items()
    }

    def loss() -> Tensor:
        losses = []
        for task, weight in heads.items():
            pixels, labels = training.moved(*next(batches[task]))
            with training.computing():
                features = encoder(pixels)
            losses.append(cross_entropy(normalize(features.float(), dim=-1) @ weight.mT, labels))
        return torch.stack(losses).sum()

    encoder.train()
    training.fine_tune(encoder, nn.ModuleList(), schedule, loss)
    for task in packs:
        _save(encoder, config, output / task / "model.safetensors")


def files_of(folder: Path) -> Iterable[Path]:
    """What the content of a base depends on."""
    return (folder / OPEN_CLIP_WEIGHTS, folder / OPEN_CLIP_CONFIG)


def _templates(pack: ImagePack) -> Sequence[str]:
    return _TEMPLATES.get(pack.name, DEFAULT)


def _config(sizes: Sizes) -> dict[str, Any]:
    vision = {
        "image_size": sizes.image_size,
        "layers": sizes.layers,
        "width": sizes.width,
        "head_width": sizes.width // sizes.heads,
        "patch_size": sizes.patch_size,
    }
    model = {"embed_dim": _EMBEDDING, "vision_cfg": vision, "text_cfg": _TEXT}
    return {"model_cfg": model, "preprocess_cfg": _PIXELS}


def _random(config: Mapping[str, Any]) -> Any:
    import open_clip

    torch.manual_seed(0)
    return open_clip.CLIP(**config["model_cfg"])


def _tokens(texts: Sequence[str]) -> Tensor:
    import open_clip

    tokens: Tensor = open_clip.SimpleTokenizer(context_length=_TEXT["context_length"])(list(texts))
    return tokens


def _save(model: nn.Module, config: Mapping[str, Any], file: Path) -> None:
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, file, metadata={"format": "pt"})
    file.with_name(OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
