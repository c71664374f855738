"""The config.json of a model that is like none of those it was made from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from momacli.checkpoint.arrays import array_dtype, parse_dtype
from momacli.checkpoint.description import Description
from momacli.checkpoint.plan import MergePlan
from momacli.checkpoint.reader import Checkpoint
from momacli.recipes.computed import layer_list
from momacli.recipes.layers import layer_lists

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def stacked_description(
    first: Description | None, pieces: Sequence[tuple[Checkpoint, int, int]]
) -> Description | None:
    """Return the description of the first model, with as many layers as there are now.

    What a config says of each layer, as in layer_types, is said of those that were taken.
    """
    if first is None:
        return None
    before = layer_lists(pieces[0][0].entries)[layer_list(pieces[0][0])]
    now = sum(stop - start for _, start, stop in pieces)
    config: dict[str, Any] = dict(first.config)
    for key in _COUNTS:
        if config.get(key) == before:
            config[key] = now
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == before:
        taken = [number for _, start, stop in pieces for number in range(start, stop)]
        config["layer_types"] = [kinds[min(number, before - 1)] for number in taken]
    return replace(first, config=config)


def described_as(description: Description | None, dtype: str | None) -> Description | None:
    """The same description with another type of the weights, where it names one."""
    if description is None or dtype is None:
        return description
    name = array_dtype(parse_dtype(dtype), "the result").name
    changed = {key: name for key in ("dtype", "torch_dtype") if key in description.config}
    return replace(description, config={**description.config, **changed})


def with_vocabulary(description: Description | None, plan: MergePlan) -> Description | None:
    """The same description with the rows of embeddings that were left, where some were not."""
    if description is None or "vocab_size" not in description.config:
        return description
    entries = plan.base.entries
    cut = {
        entries[spec.name].shape[0]: spec.shape[0]
        for spec in plan.merged
        if spec.shape != entries[spec.name].shape
    }
    rows = cut.get(description.config["vocab_size"])
    if rows is None:
        return description
    return replace(description, config={**description.config, "vocab_size": rows})
