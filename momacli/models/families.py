"""Which class opens a model, told from its config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from momacli.checkpoint.header import TensorEntry
from momacli.models.classification import Classifier
from momacli.models.clip import VisionTower
from momacli.models.layout import is_vision_tower


def open_classifier(
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    *,
    heads: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Classifier | VisionTower:
    """Build the network of a config, with random weights. Raises ModelError for unknown ones.

    heads: names of the head's tensors, by default as the architecture has them.
    """
    kind = VisionTower if is_vision_tower(config) else Classifier
    return kind(config, entries, heads=heads, device=device)
