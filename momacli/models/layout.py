"""Which tensors of a checkpoint are its head, told from config.json and names alone.

In a `transformers` model for classification everything lies under one of a few top-level
modules; the largest is the encoder, the others are the head. No model is built and neither
torch nor transformers is imported.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from momacli.checkpoint.head_files import HEAD
from momacli.checkpoint.header import MERGEABLE_DTYPES, TensorEntry
from momacli.checkpoint.open_clip_folder import is_open_clip
from momacli.checkpoint.reader import matches

_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification")


def architecture(config: Mapping[str, Any]) -> str:
    """The class a config.json names, or an empty string."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether the config is of an encoder with a classification head."""
    return architecture(config).endswith(_CLASSIFIERS)


def is_vision_tower(config: Mapping[str, Any]) -> bool:
    """Whether the config is of an image encoder, alone or with its text encoder.

    Those are CLIP and SigLIP of transformers, and all of open_clip.
    """
    kinds = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
    known = is_open_clip(config) or config.get("model_type") in kinds
    return known and not is_classifier(config)


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the config is of an encoder alone, such as a BertModel; heads are of our own."""
    name = architecture(config)
    bare = name.endswith("Model") and not name.endswith(("HeadModel", "HeadsModel"))
    return bare and not is_vision_tower(config)


def takes_text(config: Mapping[str, Any]) -> bool:
    """Whether the samples of a model are texts; otherwise they are images."""
    if is_classifier(config) or is_vision_tower(config):
        return architecture(config).endswith("ForSequenceClassification")
    return "vocab_size" in config and "image_size" not in config


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes by id2label; an empty list where there is no sound one."""
    table = config.get("id2label")
    if not isinstance(table, dict) or not all(str(key).isdecimal() for key in table):
        return []
    return [str(table[key]) for key in sorted(table, key=int)]


def sized_config(
    config: Mapping[str, Any], entries: Mapping[str, TensorEntry], heads: Sequence[str]
) -> dict[str, Any]:
    """The config with as many classes as the head has rows.

    One config.json beside several bare files cannot know the classes of each; names that do
    not fit are replaced by transformers' own LABEL_0, LABEL_1, ...
    """
    shapes = [entries[key].shape for key in heads if len(entries[key].shape) == 2]
    inner = {columns for _, columns in shapes}
    outer = [rows for rows, _ in shapes if rows not in inner] or [rows for rows, _ in shapes]
    result = dict(config)
    if outer and len(class_names(config)) not in outer:
        result["id2label"] = {str(index): f"LABEL_{index}" for index in range(outer[-1])}
        result["label2id"] = {f"LABEL_{index}": index for index in range(outer[-1])}
        result.pop("num_labels", None)
    return result


def head_names(
    config: Mapping[str, Any] | None,
    entries: Mapping[str, TensorEntry],
    patterns: Sequence[str] = (),
) -> list[str]:
    """Names of the head's tensors: those matching the patterns, else by the architecture.

    A head that came in a file of its own is it in any case. Without patterns, such a file and
    a classification architecture, none.
    """
    if patterns:
        return [key for key in entries if matches(key, patterns)]
    if separate := [key for key in entries if key.startswith(HEAD) and key.count(".") == 1]:
        return separate
    if config is None or not is_classifier(config):
        return []
    sizes: dict[str, int] = defaultdict(int)
    for key, entry in entries.items():
        sizes[_module(key)] += entry.elements
    encoder = max(sizes, key=lambda module: sizes[module], default="")
    return [key for key in entries if _module(key) != encoder]


def linear_beside(entries: Mapping[str, TensorEntry], encoder: Collection[str]) -> list[str]:
    """The one linear layer that a checkpoint has beside an encoder of these tensors, if it is one.

    It is the head of an encoder without one of its own: a weight, and perhaps its bias.
    """
    rest = {
        key: entry.shape
        for key, entry in entries.items()
        if key not in encoder and entry.dtype in MERGEABLE_DTYPES
    }
    weights = [key for key, shape in rest.items() if len(shape) == 2]
    if len(weights) != 1 or not weights[0].endswith("weight"):
        return []
    bias = weights[0].removesuffix("weight") + "bias"
    fits = {weights[0]: rest[weights[0]], bias: rest[weights[0]][:1]}
    return list(rest) if all(fits.get(key) == shape for key, shape in rest.items()) else []


def other_parts(entries: Iterable[str], known: Collection[str]) -> list[str]:
    """Names of the parts of a pre-trained model that its fine-tuned copies do not have.

    A part is all that lies under the first or the first two components of a name, such as
    `cls`, `lm_head` or `vit.pooler`; single tensors within a part that is known are not meant.
    """
    parts = {_part(name, depth) for name in known for depth in (1, 2)}
    return [
        key for key in entries if key not in known and not {_part(key, 1), _part(key, 2)} <= parts
    ]


def _part(key: str, depth: int) -> str:
    return ".".join(key.split(".")[:depth])


def _module(key: str) -> str:
    return key.split(".", 1)[0]
