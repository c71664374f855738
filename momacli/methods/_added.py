"""What is written of a block: the base and what a method adds, rounded, and how much changed."""

import numpy as np

from momacli.checkpoint.arrays import Array, array_dtype, converted, count_changed
from momacli.checkpoint.block import Block
from momacli.checkpoint.judging import check_finite, rounded
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.reader import iterate_blocks
from momacli.checkpoint.spans import Span
from momacli.errors import ConflictError

_AT_ONCE = 1 << 16
"""Values that are added, rounded and counted while they are in the cache."""


def added(plan: MergePlan, span: Span, block: Block, tau: Array) -> tuple[Array, int]:
    """theta_0 + tau, rounded to the type written, and how many values of it changed.

    With one expert and its whole task vector, it is exactly that expert.
    Raises ConflictError where a value is not finite, which may come from an input.
    """
    alone = block.theta_1
    if alone is not None and not (tau == block.taus[0]).all():
        alone = None
    merged = np.empty(span.length, array_dtype(span.spec.dtype, span.spec.name))
    changed = 0
    for start, stop in iterate_blocks(span.length, _AT_ONCE):
        theta_0 = block.theta_0[start:stop]
        theta_1 = theta_0 + tau[start:stop] if alone is None else alone[start:stop]
        try:
            merged[start:stop] = rounded(theta_1, span.spec)
        except ConflictError:
            check_finite(plan, span, block.theta_0, block.taus)
            raise
        changed += count_changed(merged[start:stop], converted(theta_0, merged.dtype))
    return merged, changed


def written(span: Span, theta_0: Array, merged: Array, changed: int) -> tuple[Array, int]:
    """The same of what has been added already, and of how many values that changed.

    Raises ConflictError where a value is not finite once it is rounded.
    """
    if merged.dtype != array_dtype(span.spec.dtype, span.spec.name):
        merged = rounded(merged, span.spec)
        changed = count_changed(merged, converted(theta_0, merged.dtype))
    return merged, changed
