"""A Vision Transformer small enough to be trained in seconds, saved as transformers saves it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from momacli.models.factory import build, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG: Mapping[str, Any] = {
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    # transformers' own 0.02 suits a width of 768; at 64 training hardly gets off the ground
    "initializer_range": 0.1,
}


def small_vit(
    classes: Sequence[str], *, image_size: int, patch_size: int, seed: int
) -> "PreTrainedModel":
    """Build one with random weights. The global random state is left as it was."""
    sizes = {"image_size": image_size, "patch_size": patch_size}
    return _seeded({**_CONFIG, **sizes, **_labels(classes)}, seed)


def with_new_head(
    model: "PreTrainedModel", classes: Sequence[str], *, seed: int
) -> "PreTrainedModel":
    """Copy the encoder of such a model under a classifier with random weights."""
    config: dict[str, Any] = model.config.to_dict()
    copy = _seeded({**config, **_labels(classes)}, seed)
    encoder = {
        key: value for key, value in model.state_dict().items() if not key.startswith("classifier.")
    }
    copy.load_state_dict(copy.state_dict() | encoder)
    return copy


def save_small_vit(model: "PreTrainedModel", folder: Path) -> None:
    """Write weights and config, to be loaded with `from_pretrained`."""
    with quiet():
        model.save_pretrained(folder)


def save_image_processor(folder: Path, *, image_size: int) -> None:
    """Write the processor beside a model: pixels from [0, 255] to [-1, 1], at one size."""
    from transformers import ViTImageProcessor

    with quiet():
        size = {"height": image_size, "width": image_size}
        ViTImageProcessor(size=size).save_pretrained(folder)


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }


def _seeded(config: Mapping[str, Any], seed: int) -> "PreTrainedModel":
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)
