"""Values that are not finite, or that a type cannot hold: errors that name model and tensor."""

import numpy as np

from momacli.checkpoint.arrays import Array, array_dtype, converted, is_finite
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import MERGEABLE_DTYPES
from momacli.checkpoint.nonfinite import SetAside, Tolerated
from momacli.checkpoint.plan import Expert, MergePlan
from momacli.checkpoint.spans import Span
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import ConflictError


def rounded(values: Array, spec: TensorSpec) -> Array:
    """Round once, to the type written. Raises ConflictError where that cannot hold a value."""
    result = converted(values, array_dtype(spec.dtype, spec.name))
    if not is_finite(result):
        raise ConflictError(
            f"tensor {shown(spec.name)} of the result has values beyond {spec.dtype}",
            hint="try a smaller --lambda, --weights that do not cancel, or another --dtype",
        )
    return result


def read_head(expert: Expert, key: str, tolerated: Tolerated | None = None) -> Array:
    """Read a head tensor, to be carried along.

    Raises ConflictError where it is not finite, unless that is tolerated and so noted.
    """
    values = expert.checkpoint.read_array(key)
    floating = expert.checkpoint.entries[key].dtype in MERGEABLE_DTYPES
    if floating and not is_finite(values):
        if tolerated is not None:
            broken = int(np.count_nonzero(~np.isfinite(values)))
            tolerated.count(f"{expert.checkpoint.path} (kept as it is)", key, broken)
            return values
        raise ConflictError(
            f"head tensor {shown(key)} of {expert.checkpoint.path} holds NaN or infinity",
            hint="the model is broken; leave it out, or merge with --allow-nonfinite as it is",
        )
    return values


def check_finite(plan: MergePlan, span: Span, theta_0: Array, taus: Array) -> SetAside | None:
    """Judge values of the base [n] and task vectors [T, n]; what is tolerated is set aside.

    Raises ConflictError, naming the models, where any is not finite.
    """
    if is_finite(theta_0) and is_finite(taus):
        return None
    key = span.spec.name
    names = [f"{plan.base.path} (the base)", *(str(item.checkpoint.path) for item in plan.experts)]
    if plan.tolerated is not None:
        return plan.tolerated.set_aside(names, key, span.start, theta_0, taus)
    broken = [
        name for name, values in zip(names, [theta_0, *taus], strict=True) if not is_finite(values)
    ]
    if not is_finite(theta_0):
        broken = names[:1]  # then the differences from it say nothing of the experts
    raise ConflictError(
        f"tensor {shown(key)} holds NaN or infinity",
        details=broken,
        hint="the model is broken; leave it out, or take this tensor from the base "
        "with --exclude, or merge with --allow-nonfinite to take all such entries from it",
    )
