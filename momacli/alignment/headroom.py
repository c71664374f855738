"""How far a mask may let the multi-task vector grow."""

import math

from momacli.alignment.inputs import Inputs
from momacli.alignment.settings import Settings
from momacli.checkpoint.header import MERGEABLE_DTYPES
from momacli.checkpoint.reader import iterate_blocks
from momacli.errors import ConflictError


def find_headroom(inputs: Inputs, settings: Settings) -> float:
    """h: as given, or such that the multi-task vector may grow to the norm of sum_t tau_t.

    At least 2, so that the start h sigma(S) = 1 leaves room both ways.
    """
    if settings.headroom != "auto" or settings.mask == "none":
        return 1.0 if settings.headroom == "auto" else settings.headroom
    first = inputs.first
    full = merged = 0.0
    for name, entry in inputs.base.entries.items():
        if (
            name not in first.keys
            or name in inputs.recipe.heads
            or entry.dtype not in MERGEABLE_DTYPES
        ):
            continue
        for start, stop in iterate_blocks(entry.elements, 1 << 20):
            theta_0 = inputs.base.read_range(name, start, stop).double()
            theta_m = first.checkpoint.read_range(first.keys[name], start, stop).double()
            total = theta_0 * 0
            for expert in inputs.experts.values():
                if name in expert.checkpoint.entries:
                    values = expert.checkpoint.read_range(name, start, stop).double()
                    total += values if expert.is_task_vector else values - theta_0
            full += float(total.square().sum())
            merged += float((theta_m - theta_0).square().sum())
    if merged == 0:
        raise ConflictError(
            f"{inputs.model.path} is the base itself: there is no multi-task vector to mask",
            hint="merge with another method or --lambda, or align with --mask none",
        )
    return max(2.0, math.sqrt(full / merged))
