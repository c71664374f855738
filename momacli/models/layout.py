"""Which tensors of a checkpoint are its head, told from config.json and names alone.

In a `transformers` model for classification everything lies under one of a few top-level
modules; the largest is the encoder, the others are the head. No model is built and neither
torch nor transformers is imported.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from momacli.checkpoint.header import TensorEntry
from momacli.checkpoint.reader import matches

_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification")


def architecture(config: Mapping[str, Any]) -> str:
    """The class a config.json names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def head_names(
    config: Mapping[str, Any] | None,
    entries: Mapping[str, TensorEntry],
    patterns: Sequence[str] = (),
) -> list[str]:
    """Names of the head's tensors: those matching the patterns, else by the architecture.

    Without patterns and without a classification architecture, none.
    """
    if patterns:
        return [key for key in entries if matches(key, patterns)]
    if config is None or not architecture(config).endswith(_CLASSIFIERS):
        return []
    sizes: dict[str, int] = defaultdict(int)
    for key, entry in entries.items():
        sizes[_module(key)] += entry.elements
    encoder = max(sizes, key=lambda module: sizes[module], default="")
    return [key for key in entries if _module(key) != encoder]


def _module(key: str) -> str:
    return key.split(".", 1)[0]
