"""The JSON files of a model folder: read in full, within bounds, no name twice."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.scanner import NameTwiceError, unique
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
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except NameTwiceError as error:
        raise CheckpointError(f"{shown_path(path)} has {shown(error.name)} twice") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown_path(path)} is not valid JSON") from error


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
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".."):
        return False
    return name == PurePosixPath(name).name == PureWindowsPath(name).name
