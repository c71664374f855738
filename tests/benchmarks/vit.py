"""A small Vision Transformer: pre-trained on many packs at once, then fine-tuned on one or all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from momacli.demonstration.training import Schedule
from momacli.models.small_vit import save_image_processor, save_small_vit, with_new_head
from tests.benchmarks import training
from tests.benchmarks.images import ImagePack, varied, varied_together

NORMALISES = False
"""Whether heads normalise the features."""


@dataclass(frozen=True)
class Sizes:
    """Those of the encoder."""

    width: int
    layers: int
    heads: int
    patch_size: int
    image_size: int = 32


def pre_train(packs: Sequence[ImagePack], sizes: Sizes, schedule: Schedule, output: Path) -> None:
    """Train one classifier of all classes of all packs, on their share for pre-training."""
    classes = [f"{pack.name}: {name}" for pack in packs for name in pack.classes]
    model = _random(classes, sizes)
    batches = varied_together(packs).batches(schedule.batch_size, seed=0)

    def loss() -> Tensor:
        pixels, labels = training.moved(*next(batches))
        with training.computing():
            logits = model(pixel_values=pixels).logits
        return cross_entropy(logits.float(), labels)

    training.pre_train(model, schedule, loss)
    _save(model, output)


def train_together(
    base: Path, packs: Mapping[str, ImagePack], schedule: Schedule, seed: int, output: Path
) -> None:
    """Fine-tune one encoder with a head for each task; writes the model of each task, by name.

    Every step takes a batch of each task, and all tasks count alike.
    """
    models = {
        task: with_new_head(load(base), pack.classes, seed=seed) for task, pack in packs.items()
    }
    encoder: Any = next(iter(models.values())).vit
    heads = nn.ModuleDict({task: model.classifier for task, model in models.items()})
    batches = {
        task: varied(pack).batches(schedule.batch_size, seed) for task, pack in packs.items()
    }

    def loss() -> Tensor:
        losses = []
        for task, head in heads.items():
            pixels, labels = training.moved(*next(batches[task]))
            with training.computing():
                features = encoder(pixel_values=pixels).last_hidden_state[:, 0]
                logits = head(features)
            losses.append(cross_entropy(logits.float(), labels))
        return torch.stack(losses).sum()

    encoder.train()
    training.fine_tune(encoder, heads, schedule, loss)
    for task, model in models.items():
        model.vit.load_state_dict(encoder.state_dict())
        _save(model, output / task)


def load(folder: Path) -> Any:
    """A model of this kind."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # plain products of matrices, which are faster here than torch's own attention in bfloat16
    return transformers.ViTForImageClassification.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager"
    )


def _random(classes: Sequence[str], sizes: Sizes) -> Any:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        initializer_range=0.05,  # transformers' own 0.02 suits a width of 768
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config)


def _save(model: Any, folder: Path) -> None:
    save_small_vit(model, folder)
    save_image_processor(folder, image_size=model.config.image_size)


def files_of(folder: Path) -> Iterable[Path]:
    """What the content of a model depends on."""
    return (folder / "model.safetensors", folder / "config.json")
