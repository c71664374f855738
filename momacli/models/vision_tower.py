"""Image encoders of CLIP and SigLIP as experts; imports neither torch nor transformers.

They are saved with and without their projection, which is not trained with them: where an
expert has none, it is that of the base.
"""

from dataclasses import replace

from momacli.checkpoint.description import Description
from momacli.checkpoint.head_files import WithTensorsOf
from momacli.checkpoint.reader import Checkpoint

PROJECTION = "visual_projection.weight"


def clip_expert(
    expert: Checkpoint, base: Checkpoint, description: Description | None
) -> tuple[Checkpoint, Description | None]:
    """The expert with the projection it needs, and the config that says so.

    base: opened for this alone, as several threads may read from it.
    """
    if PROJECTION not in expert.entries:
        expert = WithTensorsOf(expert, base, [PROJECTION])
    if description is None or description.config.get("model_type") != "clip_vision_model":
        return expert, description
    config = {
        **description.config,
        "architectures": ["CLIPVisionModelWithProjection"],
        "projection_dim": base.entries[PROJECTION].shape[0],
    }
    return expert, replace(description, config=config)
