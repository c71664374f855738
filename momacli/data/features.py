"""Features on disk, found again by the content of what made them.

The key is a hash over the weights' SHA-256, the preparation of the inputs, and the list of
samples with their sizes and times; a change of any gives another key. An entry that cannot be
read, or does not fit, counts as missing. A folder may be shared by several processes and
machines: an entry is written whole or not at all.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.staging import staged_file
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import MomaError
from momacli.progress import Listener, Notice, ignore
from momacli.shapes import Float

CacheType = Literal["float32", "float16"]

_SUFFIX = {"float32": ".safetensors", "float16": ".half.safetensors"}
_HALF = torch.float16

_MERGED_MODELS = 4
"""How many merged models have their features kept."""


def default_cache() -> Path:
    """Where features are kept unless told otherwise: $XDG_CACHE_HOME/moma, ~/.cache/moma."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "moma"


@dataclass(frozen=True)
class Key:
    """What features are found by, and what tells that kept ones are out of date."""

    task: str
    digest: str  # of all that determines the features
    place: str = ""  # where weights and samples lie: with another digest, they have changed

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return f"{self.stem}-{self.digest}"

    @property
    def stem(self) -> str:
        """The task, in letters that any file system takes."""
        return re.sub(r"[^\w.-]", "_", self.task)[:80]


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


@dataclass(frozen=True)
class CacheUse:
    """What a run had from a cache, and how large it is."""

    folder: Path
    nbytes: int  # of all entries in the folder
    found: tuple[str, ...]  # tasks
    computed: tuple[str, ...]


class FeatureCache:
    """A folder of features, one safetensors file per key.

    dtype: what they are rounded to, in float16 half the size. All that is handed out is float32
        and rounded alike, found or just computed, so that a second run gives the same bytes.
    writes: of several processes with the same features, one does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: CacheType = "float32",
        writes: bool = True,
        listener: Listener = ignore,
    ):
        self.folder = folder
        self.writes = writes
        self._dtype = dtype
        self._listener = listener
        self._found: list[str] = []
        self._computed: list[str] = []

    def get(self, key: Key, count: int) -> Float[Tensor, "N d"] | None:
        """Return the features under a key, or None if there are none for `count` samples."""
        path = self.path(key)
        if not path.is_file():
            if self._is_outdated(key):
                text = f"the features of {key.task} that are kept are of other weights, samples"
                self._listener(Notice(f"{text} or settings; they are computed again"))
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
        self._found.append(key.task)
        return features.float()

    def put(self, key: Key, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """Keep features under a key, and return them as `get` will.

        A cache that cannot be written is no reason to fail; features that float16 cannot hold
        are not kept.
        """
        path, values = self.path(key), features.float().cpu().contiguous()
        if self._dtype == "float16":
            values = values.to(_HALF)
            if not bool((values.isfinite() == features.cpu().isfinite()).all()):
                text = f"the features of {key.task} are too large for float16: not kept"
                self._listener(Notice(text))
                return features
        self._computed.append(key.task)
        if self.writes:
            self._write(path, key, values)
        return values.float().to(features.device)

    def _write(self, path: Path, key: Key, values: Tensor) -> None:
        spec = TensorSpec(
            "features", "F16" if values.dtype == _HALF else "F32", tuple(values.shape)
        )
        metadata = {"sha256": _digest(values), "place": key.place}
        try:
            with staged_file(path) as staged, CheckpointWriter(staged, [spec], metadata) as writer:
                writer.append("features", values)
        except MomaError as error:
            self._listener(Notice(f"features are not kept: {error.message}"))

    def path(self, key: Key) -> Path:
        """Where the features of a key are, or would be."""
        return self.folder / f"{key.name}{_SUFFIX[self._dtype]}"

    def use(self) -> CacheUse:
        """What was found and computed so far."""
        nbytes = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        return CacheUse(self.folder, nbytes, tuple(self._found), tuple(self._computed))

    def _is_outdated(self, key: Key) -> bool:
        """Whether there are features of the same place that something else determined."""
        if not key.place:
            return False
        suffix = _SUFFIX[self._dtype]
        for path in sorted(self.folder.glob(f"{key.stem}-{'?' * len(key.digest)}{suffix}")):
            try:
                with Checkpoint.open(path) as entry:
                    if entry.metadata.get("place") == key.place:
                        return True
            except MomaError:
                continue
        return False


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
        super().__init__(self._all / name, writes=cache.writes, listener=listener)

    def put(self, key: Key, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """Keep features under a key, and let those of the models go whose turn was long ago."""
        values = super().put(key, features)
        if not self.writes:
            return values
        with suppress(OSError):
            models = sorted(self._all.iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
            for old in models[:-_MERGED_MODELS]:
                shutil.rmtree(old, ignore_errors=True)
        return values


@dataclass(frozen=True)
class Entry:
    """Where the features of some samples are kept, once they are there."""

    cache: FeatureCache
    key: Key

    def get(self, count: int) -> Float[Tensor, "N d"] | None:
        """Return them, or None if there are none for `count` samples."""
        return self.cache.get(self.key, count)

    def put(self, features: Float[Tensor, "N d"]) -> None:
        """Keep them."""
        self.cache.put(self.key, features)


def _digest(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().view(torch.uint8).numpy().data).hexdigest()
