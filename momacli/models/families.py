"""Which class opens a model, told from its config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from momacli.checkpoint.feature_rule import rule_of
from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.open_clip_folder import is_open_clip
from momacli.errors import ModelError
from momacli.models.classification import Classifier
from momacli.models.clip import VisionTower
from momacli.models.layout import architecture, is_classifier, is_vision_tower
from momacli.models.open_clip import OpenClipTower
from momacli.models.pooled import PooledNetwork
from momacli.models.separate_head import SeparateHead


def open_classifier(
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    *,
    heads: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Classifier | SeparateHead:
    """Build the network of a config, with random weights. Raises ModelError for unknown ones.

    heads: names of the head's tensors, by default as the architecture has them.
    """
    kind: type[Classifier | VisionTower | PooledNetwork] = Classifier
    if is_open_clip(config):
        kind = OpenClipTower
    elif rule_of(config) is not None:
        kind = PooledNetwork
    elif is_vision_tower(config):
        kind = VisionTower
    elif not is_classifier(config):
        raise ModelError(
            f"what the features of {architecture(config) or 'a model without a class'} are is "
            "unknown",
            hint="say it: --pooling cls|pooler|mean|masked-mean for the output of its encoder, "
            "--features MODULE for that of another module; with --heads MODULE where the model "
            "has a head of its own",
        )
    return kind(config, entries, heads=heads, device=device)
