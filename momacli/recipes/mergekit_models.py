"""Where the models are that a mergekit configuration names; nothing is downloaded."""

import os
import re
from pathlib import Path
from typing import Any

from momacli.checkpoint.escaping import shown
from momacli.errors import CheckpointError, UsageError

_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def find_model(reference: Any, folder: Path, where: str) -> Path:
    """Find a model beside the configuration, in the present folder or in the hub's cache.

    folder: where relative paths start; the present folder comes second.
    where: what messages call the configuration.

    Raises UsageError for references that are not supported, CheckpointError where there is no
    such model.
    """
    text = reference
    while isinstance(text, dict) and len(text) == 1 and set(text) <= {"model", "path"}:
        text = next(iter(text.values()))
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(
            f"{where}: expected the path of a model, found {shown(repr(reference))}",
            hint="adapters, revisions and other architectures are not supported",
        )
    found = _find(text, folder)
    if found is not None:
        return found
    if "+" in text and _find(text.split("+")[0], folder) is not None:
        raise UsageError(
            f"{where}: {shown(text)} adds an adapter to a model, which is not supported",
            hint="merge the adapter into the model first (merge_and_unload of peft)",
        )
    raise CheckpointError(
        f"{where}: there is no model {shown(text)} here, and moma downloads nothing",
        hint=f"get it with: hf download {shown(text)}"
        if _ON_HUB.fullmatch(text)
        else "paths are relative to the configuration, or to the folder this runs in",
    )


def model_name(path: Path) -> str:
    """What a model is called: its file or folder, in the hub's cache its repository."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.split("--")[-1]
    resolved = path.resolve() if path.name in ("", "..") else path
    return resolved.name.removesuffix(".safetensors")


def _find(text: str, folder: Path) -> Path | None:
    for path in (folder / text, Path(text)):
        if path.exists():
            return path
    return _cached(text) if _ON_HUB.fullmatch(text) else None


def _cached(name: str) -> Path | None:
    """The main revision of a repository that was downloaded before."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if re.fullmatch(r"[0-9a-f]+", revision) and snapshot.is_dir() else None
