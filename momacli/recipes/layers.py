"""Where the number of a layer stands in the names of a model's tensors."""

import re
from collections import Counter
from collections.abc import Iterable

_BEFORE = re.compile(r"(^|[._])(\w*embed\w*|wte|wpe|patch_\w+|class_token|conv1)([._]|$)")


def split_layer(name: str) -> tuple[str, int, str] | None:
    """Return what is before and after the first number in a tensor's name, and the number."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdecimal() and part.isascii():
            return ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])
    return None


def layer_lists(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each list of layers, by what precedes the number."""
    found = [split for name in names if (split := split_layer(name))]
    numbers: dict[str, int] = {}
    for before, number, _ in found:
        numbers[before] = max(numbers.get(before, 0), number + 1)
    order = Counter(before for before, _, _ in found).most_common()
    return {before: numbers[before] for before, _ in order}


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers is an embedding, and so at the bottom of the model."""
    return _BEFORE.search(name.lower()) is not None


def joined(before: str, number: int, after: str) -> str:
    """Make a name of its parts again."""
    return ".".join(part for part in (before, str(number), after) if part)
