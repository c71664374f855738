"""What a model says of itself: its config.json, and the files that prepare its inputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momacli.checkpoint import sentence_transformers
from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.feature_rule import KEY, PAPER, with_rule
from momacli.checkpoint.head_files import classes_of
from momacli.checkpoint.index import read_json
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, is_open_clip
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import CheckpointError

CONFIG = "config.json"
CONFIG_KEY = "config"
"""Metadata key under which a bare file may carry its config.json."""

COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files beside a config.json that belong to the model and travel with it."""

PAPER_HEAD = "classifier.0.weight"
PAPER_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"
"""Of the paper's BERT models: the head is an nn.Sequential of one layer.

Their config.json is that of the base, which is published as a BertForMaskedLM.
"""


@dataclass(frozen=True)
class Description:
    """A model's config and the folder of its processor or tokenizer files, if there is one."""

    config: Mapping[str, Any]
    folder: Path | None

    @property
    def file_name(self) -> str:
        """The name of the file that the config is kept in."""
        return OPEN_CLIP_CONFIG if is_open_clip(self.config) else CONFIG

    @property
    def companions(self) -> list[Path]:
        """The processor and tokenizer files that exist.

        They are copied to outputs, so that a link must not lead to somebody's secrets: raises
        CheckpointError for one that leads elsewhere than to a neighbour or a hub's cache.
        """
        if self.folder is None:
            return []
        found = [self.folder / name for name in COMPANIONS if (self.folder / name).is_file()]
        found += sentence_transformers.companions(self.folder)
        for file in found:
            if file.is_symlink():
                _check_link(file, self.folder)
        return found


def _check_link(file: Path, folder: Path) -> None:
    """Follow a link no further than hubs' caches do, from snapshots/REVISION to blobs."""
    own, target = folder.resolve(), file.resolve()
    near = [own, own.parent, own.parent.parent / "blobs"]
    if not any(target.is_relative_to(place) for place in near if place != place.parent):
        raise CheckpointError(
            f"{shown_path(file)} is a link that leads far away, to {shown_path(target)}",
            hint="put a copy of that file in its place, if it belongs to the model",
        )


def describe(checkpoint: Checkpoint, config: Path | None = None) -> Description | None:
    """Find a checkpoint's description: as given, in its metadata, or in a config.json beside it.

    Returns None where there is none; merging by name needs none.
    """
    path = checkpoint.path
    beside = path if checkpoint.is_folder else path.parent
    if config is not None:
        file = config / _config_name(config, checkpoint) if config.is_dir() else config
        return _described(_config(file), checkpoint, file.parent)
    if CONFIG_KEY in checkpoint.metadata:
        try:
            content = json.loads(checkpoint.metadata[CONFIG_KEY])
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: the config in its metadata is not a JSON object")
        return _described(content, checkpoint, beside)
    file = beside / _config_name(beside, checkpoint)
    if file.is_file():
        return _described(_config(file), checkpoint, beside)
    return None


def _described(config: Mapping[str, Any], checkpoint: Checkpoint, folder: Path) -> Description:
    found = Description(_completed(config, checkpoint, folder), folder)
    _ = found.companions  # a link to somewhere else is refused before any work
    return found


def _config_name(folder: Path, checkpoint: Checkpoint) -> str:
    """Which config a folder has; of both, the one that belongs to the weights."""
    has_own = (folder / OPEN_CLIP_CONFIG).is_file()
    own_weights = any(file.path.name == OPEN_CLIP_WEIGHTS for file in checkpoint.files)
    if has_own and (own_weights or not (folder / CONFIG).is_file()):
        return OPEN_CLIP_CONFIG
    return CONFIG


def _completed(
    config: Mapping[str, Any], checkpoint: Checkpoint, folder: Path
) -> Mapping[str, Any]:
    """The config with what other files, and the layout, say of classes and features."""
    config = with_class_names(config, checkpoint)
    if KEY in config:
        return config
    if rule := sentence_transformers.rule_in(folder):
        return with_rule(config, rule)
    is_bert = config.get("model_type") == "bert"
    if not is_bert or not {PAPER_HEAD, PAPER_EMBEDDINGS} <= set(checkpoint.entries):
        return config
    return with_rule({**config, "architectures": ["BertModel"]}, PAPER)


def with_class_names(config: Mapping[str, Any], checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config with the class names of a head file, if the checkpoint came with one."""
    names = classes_of(checkpoint)
    if not names:
        return config
    table = {str(number): name for number, name in enumerate(names)}
    return {**config, "id2label": table, "label2id": {name: int(n) for n, name in table.items()}}


def _config(file: Path) -> Mapping[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object, expected a model's config.json")
    return content
