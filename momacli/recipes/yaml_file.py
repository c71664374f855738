"""Read YAML from strangers: plain values only, no name twice, bounded in size."""

from pathlib import Path
from typing import Any

import yaml

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.source import Source
from momacli.errors import UsageError

MAX_BYTES = 10_000_000
MAX_VALUES = 100_000
"""Values after every alias is written out; a few lines of aliases can stand for billions."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML file that holds one table. Raises UsageError naming it."""
    with Source(path) as source:
        if source.size > MAX_BYTES:
            raise UsageError(f"{shown_path(path)} is too large for a recipe: {source.size} bytes")
        raw = source.read(source.size, 0)
    try:
        content = yaml.load(raw, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{shown_path(path)} is not valid YAML: {shown(reason, 300)}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{shown_path(path)} holds no table of settings")
    if _count(content) > MAX_VALUES:
        raise UsageError(f"{shown_path(path)} stands for more than {MAX_VALUES} values")
    return content


class _PlainLoader(yaml.SafeLoader):
    """Makes only plain values; refuses a key given twice, and tables merged into another."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        found: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ValueError(f"merge keys (<<) are not read{key.start_mark}")
            if isinstance(key.value, str) and key.value in found:
                raise ValueError(f"{key.value} is given twice{key.start_mark}")
            found.add(str(key.value))


def _count(value: object) -> int:
    """How many values there are with all aliases written out, up to a little over the limit."""
    count, waiting = 0, [value]
    while waiting and count <= MAX_VALUES:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return count
