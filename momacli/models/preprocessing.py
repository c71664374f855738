"""Images to what a model takes, by the checkpoint's own processor."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from momacli.checkpoint.open_clip_folder import is_open_clip
from momacli.errors import ModelError
from momacli.models.factory import quiet
from momacli.models.open_clip import image_transform

if TYPE_CHECKING:
    from PIL.Image import Image

ImagePreprocessor = Callable[[Sequence["Image"]], Tensor]
"""RGB images -> pixel_values [N, 3, H, W]."""


def image_preprocessor(
    folder: Path | None, config: Mapping[str, Any] | None = None
) -> ImagePreprocessor:
    """Return the processor described in a model folder, or in the config of an open_clip model.

    Raises ModelError if there is none.
    """
    if config is not None and is_open_clip(config):
        transform = image_transform(config)
        return lambda images: torch.stack([transform(image) for image in images])
    names = ("preprocessor_config.json", "processor_config.json")
    if folder is None or not any((folder / name).is_file() for name in names):
        where = folder or "the model's folder"
        raise ModelError(
            f"{where} has no {names[0]}, so it is unknown how images were prepared for training",
            hint="copy it from the base model, or name its folder with --config",
        )
    from transformers import AutoImageProcessor

    with quiet():
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def prepare(images: Sequence["Image"]) -> Tensor:
        values: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return values

    return prepare
