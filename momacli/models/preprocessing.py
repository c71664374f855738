"""Images to what a model takes, by the checkpoint's own processor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG, is_open_clip
from momacli.errors import ModelError
from momacli.models.factory import quiet
from momacli.models.open_clip import image_transform

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImagePreprocessor:
    """RGB images -> pixel_values [N, 3, H, W]."""

    prepare: Callable[[Sequence["Image"]], Tensor]
    steps: str  # what is done to an image, for people
    origin: str  # where that is said

    def __call__(self, images: Sequence["Image"]) -> Tensor:
        """Prepare images, as many as are given."""
        return self.prepare(images)


def image_preprocessor(
    folder: Path | None, config: Mapping[str, Any] | None = None
) -> ImagePreprocessor:
    """Return the processor described in a model folder, or in the config of an open_clip model.

    Raises ModelError if there is none.
    """
    if config is not None and is_open_clip(config):
        transform, settings = image_transform(config)
        return ImagePreprocessor(
            lambda images: torch.stack([transform(image) for image in images]),
            _open_clip_steps(settings),
            f"{folder or '.'}/{OPEN_CLIP_CONFIG}",
        )
    names = ("preprocessor_config.json", "processor_config.json")
    found = [folder / name for name in names if (folder / name).is_file()] if folder else []
    if not found:
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

    return ImagePreprocessor(prepare, _steps(processor), str(found[0]))


def _steps(processor: Any) -> str:
    """What a processor of transformers does, in its order."""
    parts = []
    if getattr(processor, "do_resize", False):
        how = _resampling(getattr(processor, "resample", None))
        parts.append(f"resized to {_size(processor.size)}{how and f' ({how})'}")
    if getattr(processor, "do_center_crop", False):
        parts.append(f"center crop {_size(processor.crop_size)}")
    if getattr(processor, "do_rescale", False):
        parts.append(f"times {processor.rescale_factor:.4g}")
    if getattr(processor, "do_normalize", False):
        parts.append(_normalised(processor.image_mean, processor.image_std))
    return ", ".join(["RGB", *parts])


def _open_clip_steps(settings: Mapping[str, Any]) -> str:
    """What open_clip does, by its settings."""
    how = "{resize_mode}, {interpolation}".format_map(settings)
    parts = [f"resized to {_size(settings['size'])} ({how})"]
    if settings["resize_mode"] == "shortest":
        parts.append(f"center crop {_size(settings['size'])}")
    return ", ".join(["RGB", *parts, _normalised(settings["mean"], settings["std"])])


def _size(size: Any) -> str:
    """A size as configs have it: a number, two, or words with numbers."""
    if isinstance(size, (tuple, list)):
        return " x ".join(map(str, size))
    if isinstance(size, (int, float)):
        return f"{size} x {size}"
    words = {key: value for key, value in dict(size).items() if value is not None}
    if set(words) == {"height", "width"}:
        return f"{words['height']} x {words['width']}"
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in words.items())


def _resampling(value: Any) -> str:
    from PIL.Image import Resampling

    known = {int(mode): mode.name.lower() for mode in Resampling}
    if isinstance(value, int):
        return known.get(int(value), str(value))
    return str(getattr(value, "value", value or ""))


def _normalised(mean: Any, std: Any) -> str:
    def numbers(values: Any) -> str:
        several = values if isinstance(values, (tuple, list)) else [values]
        return " ".join(f"{value:.4g}" for value in several)

    return f"mean {numbers(mean)}, std {numbers(std)}"
