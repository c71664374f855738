"""Image encoders of open_clip with a cosine head; whole models or the image part alone."""

from typing import Any

OPENAI = "openai"


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
