"""Image encoders of open_clip with a cosine head; whole models or the image part alone.

The features are what is compared with texts, after `visual.proj`, not normalised. Networks are
built from the `model_cfg` of an open_clip_config.json; nothing is downloaded.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from momacli.checkpoint.header import TensorEntry
from momacli.errors import ModelError
from momacli.models.clip import VisionTower
from momacli.models.interface import Batch
from momacli.shapes import Float

if TYPE_CHECKING:
    from PIL.Image import Image

OPENAI = "openai"

_IMAGE = "visual"
"""The part of a model that images pass through."""

_STAND_IN = {"context_length": 1, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
"""A text encoder that is built to be thrown away."""


class OpenClipTower(VisionTower):
    """An image encoder and a cosine head; tensors go by their checkpoint names."""

    misfit_hint = "is it the head of another model?"

    @staticmethod
    def build(config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> nn.Module:
        """Build those parts of the model that a checkpoint has, with random weights."""
        return build_model(config, entries)

    @staticmethod
    def sees_images(name: str) -> bool:
        """Whether images pass through a tensor, by its name in the network."""
        return name.startswith(f"{_IMAGE}.")

    def features(self, batch: Batch) -> Float[Tensor, "N d"]:
        """Return the image embeddings as they are before normalisation."""
        model: Any = self.module
        found: Tensor = model.visual(batch["pixel_values"])
        return found


def build_model(config: Mapping[str, Any], entries: Collection[str]) -> nn.Module:
    """Build the model of an open_clip_config.json, with random weights.

    entries: names of the tensors there are; parts without any, such as a text encoder that was
        deleted, are left out, but for the image encoder.

    Raises ModelError for what open_clip cannot build, or not without a download.
    """
    import open_clip

    cfg: dict[str, Any] = copy.deepcopy(dict(config["model_cfg"]))
    prefix = _prefix_of(entries)
    custom = cfg.pop("custom_text", False)
    text, vision = cfg.get("text_cfg"), cfg.get("vision_cfg")
    if not isinstance(text, dict) or not isinstance(vision, dict) or "multimodal_cfg" in cfg:
        raise ModelError("the open_clip config is not of a model of images and texts (CLIP)")
    if "hf_model_name" in text:
        if prefix is not None and any(key.startswith(f"{prefix}text.") for key in entries):
            raise ModelError(
                f"its text encoder is {text['hf_model_name']}, which open_clip would download",
                hint="give the image encoder alone: tensors whose names begin with visual.",
            )
        cfg["text_cfg"] = dict(_STAND_IN)
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        model: nn.Module = kind(**{**cfg, "output_dict": False})
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise ModelError(f"open_clip cannot build a model from its config: {error}") from error
    names = list(model.state_dict())
    for part in {name.split(".")[0] for name in names} - {_IMAGE}:
        own = [name for name in names if name.split(".")[0] == part]
        if prefix is None or not any(prefix + name in entries for name in own):
            delattr(model, part)
    return model


def _prefix_of(entries: Collection[str]) -> str | None:
    """What stands before `visual.` in the names; None where they are those of the image encoder."""
    found = {key[: f".{key}".index(f".{_IMAGE}.")] for key in entries if f".{_IMAGE}." in f".{key}"}
    return min(found, default=None)


def text_encoder(
    model: nn.Module, config: Mapping[str, Any], folder: Path | None
) -> Callable[[Sequence[str]], Float[Tensor, "n d"]]:
    """Return what makes embeddings, not normalised, of texts. Raises ModelError."""
    import open_clip

    whole: Any = model
    if not (hasattr(model, "transformer") or hasattr(model, "text")):
        raise ModelError(
            "the checkpoint has no text encoder",
            hint="give the whole model that it was fine-tuned from, or a head_TASK.pt to convert",
        )
    text = config["model_cfg"]["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    tokenize: Any
    if text.get("hf_tokenizer_name"):
        if folder is None or not (folder / "tokenizer_config.json").is_file():
            raise ModelError(
                f"its tokenizer is {text['hf_tokenizer_name']}, and its files are not there",
                hint="put tokenizer.json and tokenizer_config.json beside the weights",
            )
        tokenize = open_clip.HFTokenizer(
            str(folder), length, tokenizer_mode=text.get("tokenizer_mode"), **options
        )
    else:
        tokenize = open_clip.SimpleTokenizer(context_length=length, **options)
    device = next(model.parameters()).device

    def encode(sentences: Sequence[str]) -> Float[Tensor, "n d"]:
        found: Tensor = whole.encode_text(tokenize(list(sentences)).to(device))
        return found

    return encode


def image_transform(
    config: Mapping[str, Any],
) -> "tuple[Callable[[Image], Tensor], Mapping[str, Any]]":
    """Return open_clip's own preparation of images for evaluation, and the settings it follows."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    vision = config["model_cfg"].get("vision_cfg") or {}
    prepared = dict(config.get("preprocess_cfg") or {})
    prepared["size"] = vision.get("image_size") or prepared.get("size") or PreprocessCfg.size
    try:
        settings = PreprocessCfg(**prepared)
        transform: Callable[[Image], Tensor] = image_transform_v2(settings, is_train=False)
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"open_clip cannot read its preprocess_cfg: {error}") from error
    return transform, vars(settings)


def named_config(name: str, *, quick_gelu: bool | None = None) -> dict[str, Any] | None:
    """The open_clip_config.json of a model that open_clip knows by name; None for others.

    The literature's folders are named like models, `ViT-B-32`, for OpenAI's weights, or
    `ViT-B-32__pretrained__laion2b_s34b_b79k` for others.

    quick_gelu: whether it has OpenAI's activation, where the weights' file tells.
    """
    import open_clip

    architecture, _, tag = name.partition("__pretrained__")
    model = open_clip.get_model_config(architecture)
    if model is None:
        return None
    found = open_clip.get_pretrained_cfg(architecture, tag or OPENAI)
    if quick_gelu is None:
        quick_gelu = bool(found.get("quick_gelu", False))
    if quick_gelu:
        model["quick_gelu"] = True
    names = ("mean", "std", "interpolation", "resize_mode")
    prepared = {key: found[key] for key in names if key in found}
    prepared["size"] = model["vision_cfg"]["image_size"]
    return {"model_cfg": model, "preprocess_cfg": prepared}
