"""What the model folders of open_clip are told by: the names of their files."""

from collections.abc import Mapping

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"


def is_open_clip(config: Mapping[str, object]) -> bool:
    """Whether this is the content of an open_clip_config.json."""
    return isinstance(config.get("model_cfg"), dict)
