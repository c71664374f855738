"""Images to what a model takes, by the checkpoint's own processor."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from momacli.errors import ModelError
from momacli.models.factory import quiet

if TYPE_CHECKING:
    from PIL.Image import Image

ImagePreprocessor = Callable[[Sequence["Image"]], Tensor]
"""RGB images -> pixel_values [N, 3, H, W]."""


def image_preprocessor(folder: Path | None) -> ImagePreprocessor:
    """Return the processor described in a model folder. Raises ModelError if there is none."""
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
