"""The state of a running alignment on disk, so that a stopped run goes on where it was.

A state is a safetensors file written whole or not at all; it belongs to one combination of
weights, samples and settings, and is not used for any other.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from momacli.checkpoint.dtypes import dtype_code
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.staging import staged_file
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import CheckpointError
from momacli.progress import Listener, Notice, ignore

_STATE_KEY = "alignment-state"


@dataclass(frozen=True)
class Keeper:
    """Where the state of one alignment is kept, and how often."""

    path: Path
    key: str  # of weights, samples and settings
    every: int = 100  # steps; 0 keeps it only when the run is stopped
    listener: Listener = ignore
    writes: bool = True  # of several processes with the same state, one does

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return the kept step and tensors, or None if there are none for this key."""
        if not self.path.is_file():
            return None
        try:
            with Checkpoint.open(self.path) as kept:
                content = json.loads(kept.metadata[_STATE_KEY])
                if content["key"] != self.key:
                    reason = "belongs to another run"
                else:
                    return int(content["step"]), {name: kept.read(name) for name in kept.entries}
        except (CheckpointError, KeyError, TypeError, ValueError):
            reason = "is damaged"
        self.listener(Notice(f"{self.path} {reason}; starting anew"))
        return None

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Replace the kept state. Raises OutputError if it cannot be written."""
        if not self.writes:
            return
        specs = [
            TensorSpec(name, dtype_code(value.dtype), tuple(value.shape))
            for name, value in tensors.items()
        ]
        metadata = {_STATE_KEY: json.dumps({"key": self.key, "step": step})}
        with (
            staged_file(self.path) as staged,
            CheckpointWriter(staged, specs, metadata) as writer,
        ):
            for name, value in tensors.items():
                writer.append(name, value)

    def discard(self) -> None:
        """Remove the state of a run that is complete."""
        if self.writes:
            self.path.unlink(missing_ok=True)


def state_key(
    settings: Mapping[str, object],
    weights: Mapping[str, str],
    features: Sequence[Tensor],
    configs: Mapping[str, Mapping[str, object]] | None = None,
) -> str:
    """Hash what determines a run: settings, SHA-256 of weights, fine-tuned features.

    configs: of the tasks' models, with what is said of their features.
    """
    content: dict[str, object] = {"settings": dict(settings), "weights": dict(weights)}
    if configs:
        content["configs"] = {task: dict(config) for task, config in configs.items()}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for values in features:
        digest.update(str(tuple(values.shape)).encode())
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
