"""Features on disk, found again by the content of what made them.

The key is a hash over the weights' SHA-256, the preparation of the inputs, and the list of
samples with their sizes and times; a change of any gives another key. An entry that cannot be
read, or does not fit, counts as missing.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.staging import staged_file
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import MomaError
from momacli.progress import Listener, Notice, ignore

_MERGED_MODELS = 4
"""How many merged models have their features kept."""


def default_cache() -> Path:
    """Where features are kept unless told otherwise: $XDG_CACHE_HOME/moma, ~/.cache/moma."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "moma"


def feature_key(
    weights: Mapping[str, str], config: Mapping[str, object], files: Sequence[Path], root: Path
) -> str:
    """Hash what determines the features of `files` below `root`."""
    digest = hashlib.sha256()
    head = {"weights": dict(weights), "config": dict(config)}
    digest.update(json.dumps(head, sort_keys=True, default=str).encode())
    for file in files:
        status = file.stat()
        name = os.fsencode(os.path.relpath(file, root))
        digest.update(b"%s\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


class FeatureCache:
    """A folder of features, one safetensors file per key."""

    def __init__(self, folder: Path, *, listener: Listener = ignore):
        self.folder = folder
        self._listener = listener

    def get(self, key: str, count: int) -> Float[Tensor, "N d"] | None:
        """Return the features under a key, or None if there are none for `count` samples."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with Checkpoint.open(path) as entry:
                features = entry.read("features")
                intact = entry.metadata.get("sha256") == _digest(features)
        except (MomaError, KeyError):
            intact = False
        if not intact or features.ndim != 2 or len(features) != count:
            self._listener(Notice(f"{path} is damaged; its features are computed again"))
            return None
        return features

    def put(self, key: str, features: Float[Tensor, "N d"]) -> None:
        """Keep features under a key; a cache that cannot be written is no reason to fail."""
        path = self._path(key)
        spec = TensorSpec("features", "F32", tuple(features.shape))
        values = features.float().cpu().contiguous()
        try:
            with (
                staged_file(path) as staged,
                CheckpointWriter(staged, [spec], {"sha256": _digest(values)}) as writer,
            ):
                writer.append("features", values)
        except MomaError as error:
            self._listener(Notice(f"features are not kept: {error.message}"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


class MergedCache(FeatureCache):
    """Features of one merged model, in a folder of its own; only the latest few models have one.

    Experts are few and stay; merged models are made by the dozen.
    """

    def __init__(
        self, cache: FeatureCache, weights: Mapping[str, str], *, listener: Listener = ignore
    ):
        """weights: SHA-256 by file."""
        self._all = cache.folder / "merged"
        name = hashlib.sha256(json.dumps(dict(weights), sort_keys=True).encode()).hexdigest()
        super().__init__(self._all / name, listener=listener)

    def put(self, key: str, features: Float[Tensor, "N d"]) -> None:
        """Keep features under a key, and let those of the models go whose turn was long ago."""
        super().put(key, features)
        with suppress(OSError):
            models = sorted(self._all.iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
            for old in models[:-_MERGED_MODELS]:
                shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """Where the features of some samples are kept, once they are there."""

    cache: FeatureCache
    key: str

    def get(self, count: int) -> Float[Tensor, "N d"] | None:
        """Return them, or None if there are none for `count` samples."""
        return self.cache.get(self.key, count)

    def put(self, features: Float[Tensor, "N d"]) -> None:
        """Keep them."""
        self.cache.put(self.key, features)


def _digest(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().view(torch.uint8).numpy().data).hexdigest()
