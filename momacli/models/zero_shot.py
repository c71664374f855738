"""Classifiers from text: the rows are the embeddings of sentences that name the classes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from momacli.checkpoint.description import Description
from momacli.checkpoint.open_clip_folder import is_open_clip
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ModelError
from momacli.models.classification import Network
from momacli.models.factory import build_tower, quiet
from momacli.models.open_clip import build_model, text_encoder
from momacli.models.separate_head import unit_norm
from momacli.models.text import load_tokenizer
from momacli.progress import Listener, Progress, ignore
from momacli.shapes import Float

_LARGEST_SCALE = 100.0  # what CLIP limits its logit scale to

Encode = Callable[[Sequence[str]], Float[Tensor, "n d"]]
"""Makes embeddings, not normalised, of sentences."""


@torch.no_grad()
def zero_shot_head(
    checkpoint: Checkpoint,
    description: Description,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    listener: Listener = ignore,
) -> dict[str, Tensor]:
    """Return `weight` [C, d], and `bias` [C] for SigLIP, of a CLIP, SigLIP or open_clip model.

    A row is the normalised mean of a class's normalised sentences, times the logit scale.
    Raises ModelError if the model has no text encoder.
    """
    load = _of_open_clip if is_open_clip(description.config) else _of_transformers
    encode, model = load(checkpoint, description, device)
    rows = []
    for number, name in enumerate(classes, start=1):
        rows.append(_mean_direction(encode([item.replace("{}", name) for item in templates])))
        listener(Progress("encoding classes", number, len(classes), "classes"))
    scale = model.logit_scale.float().exp().clamp(max=_LARGEST_SCALE)
    head = {"weight": (scale * torch.stack(rows)).cpu()}
    bias = getattr(model, "logit_bias", None)
    if bias is not None:
        head["bias"] = bias.float().cpu().expand(len(classes)).clone()
    return head


def _of_transformers(
    checkpoint: Checkpoint, description: Description, device: torch.device | str
) -> tuple[Encode, Any]:
    """Load a CLIPModel or SiglipModel; returns what encodes sentences, and the network."""
    network = Network(build_tower(description.config), checkpoint.entries, device)
    model: Any = network.module
    if not hasattr(model, "get_text_features"):
        raise ModelError(
            f"{checkpoint.path} has no text encoder", hint="give the full CLIPModel or SiglipModel"
        )
    network.load(checkpoint.read, checkpoint.entries, source=str(checkpoint.path))
    tokenizer = load_tokenizer(description.folder)
    length = int(model.config.text_config.max_position_embeddings)
    fixed = description.config.get("model_type") == "siglip"  # trained with padding throughout

    def encode(sentences: Sequence[str]) -> Float[Tensor, "n d"]:
        with quiet():
            tokens = tokenizer(
                list(sentences),
                padding="max_length" if fixed else True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
        inputs = {
            key: tokens[key].to(device)
            for key in ("input_ids", "attention_mask")
            if key in tokens and not (fixed and key == "attention_mask")
        }
        found = model.get_text_features(**inputs)
        embeddings: Tensor = getattr(found, "pooler_output", found)
        return embeddings.float()

    return encode, model


def _of_open_clip(
    checkpoint: Checkpoint, description: Description, device: torch.device | str
) -> tuple[Encode, Any]:
    """Load a whole model of open_clip; returns what encodes sentences, and the network."""
    model = build_model(description.config, checkpoint.entries)
    network = Network(model, checkpoint.entries, device)
    network.load(checkpoint.read, checkpoint.entries, source=str(checkpoint.path))
    return text_encoder(network.module, description.config, description.folder), network.module


def _mean_direction(sentences: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    return unit_norm(unit_norm(sentences).mean(dim=0))
