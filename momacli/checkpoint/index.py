"""The JSON files of a model folder: read in full, within bounds, no name twice."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.header import is_unicode
from momacli.checkpoint.source import Source
from momacli.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
"""Far more than any index or config has."""


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises CheckpointError naming it."""
    with Source(path) as source:
        if source.size > MAX_JSON_BYTES:
            raise CheckpointError(f"{shown_path(path)} is too large: {source.size} bytes of JSON")
        raw = source.read(source.size, 0)
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_table)
    except _NameTwiceError as error:
        raise CheckpointError(f"{shown_path(path)} has {shown(error.name)} twice") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown_path(path)} is not valid JSON") from error


class _NameTwiceError(Exception):
    def __init__(self, name: str):
        self.name = name


def _table(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _NameTwiceError(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return table


def read_index(index: Path) -> Mapping[str, str]:
    """Which shard each tensor is in; only plain names of files that are there pass.

    Names are judged, not where they lead: the files of a download cache are links.
    """
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(
            f"{shown_path(index)} has no weight_map of tensor names to file names"
        )
    odd = {
        f"{shown(key)}: {shown(str(name))}" for key, name in table.items() if not _is_plain(name)
    }
    if odd:
        raise CheckpointError(
            f"{shown_path(index)} names what is no file beside it",
            details=sorted(odd),
            hint="do not trust this download",
        )
    names = sorted(set(table.values()))
    missing = [shown(name) for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{shown_path(index)} lists {len(missing)} of {len(names)} files that are not there",
            details=missing,
            hint="download the rest of the folder",
        )
    return table


def _is_plain(name: object) -> bool:
    """Whether this is the name of a file in the same folder, on any system."""
    if not isinstance(name, str) or name in ("", "..") or "\0" in name or not is_unicode(name):
        return False
    return name == PurePosixPath(name).name == PureWindowsPath(name).name
