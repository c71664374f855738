"""Heads in files of their own, as zero-shot classifiers have them.

A head file holds `weight` [C, d] and perhaps `bias`. It belongs to a model of task T if it is
`head.safetensors` or `head_T.safetensors` in the model's folder, or `head_T.safetensors`
beside that folder or file. Within moma its tensors are `zeroshot_head.weight` and so on.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.reader import Checkpoint, TensorFile
from momacli.errors import CheckpointError

HEAD = "zeroshot_head."
CLASSES = "classes"
"""Metadata key of a head file: the names of its classes, a JSON list."""

NORMALIZE = "normalize"
"""Metadata key of a converted head: whether features are normalised before it."""

_TENSORS = ("weight", "bias")


def is_head(names: Collection[str]) -> bool:
    """Whether these are the tensors of a head file."""
    return "weight" in names and set(names) <= set(_TENSORS)


class WithHead(Checkpoint):
    """A checkpoint together with the head in a file beside it."""

    def __init__(self, model: Checkpoint, head: TensorFile):
        super().__init__(model.path, model.name, (), model.beside)
        entries = head.header.entries
        if not is_head(entries):
            raise CheckpointError(
                f"{shown_path(head.path)} is not a head: expected weight and perhaps bias",
                details=list(entries),
                hint="moma head writes such files; rename it if it is something else",
            )
        if head.header.metadata.get(NORMALIZE) == "false":
            raise CheckpointError(
                f"{shown_path(head.path)} takes features that are not normalised, which only "
                "heads within a model do"
            )
        self.files = (*model.files, head)
        own = {HEAD + key: (head, entry) for key, entry in entries.items()}
        self._where = {**model._where, **own}


class WithTensorsOf(Checkpoint):
    """A checkpoint with some tensors of another, which stays the one to close."""

    def __init__(self, model: Checkpoint, other: Checkpoint, names: Iterable[str]):
        super().__init__(model.path, model.name, ())
        self.files = model.files
        self._where = {**model._where, **{name: other._where[name] for name in names}}


def with_head_file(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the head beside it, if there is one. Raises CheckpointError."""
    path, name = checkpoint.path, f"head_{checkpoint.name}.safetensors"
    places = [path.parent / name]
    if path.is_dir():
        places = [path / "head.safetensors", path / name, *places]
    else:
        places.append(path.parent.parent / name)
    found = next((place for place in places if place.is_file() and place != path), None)
    if found is None or any(key.startswith(HEAD) for key in checkpoint.entries):
        return checkpoint
    file = TensorFile(found)
    try:
        return WithHead(checkpoint, file)
    except CheckpointError:
        file.close()
        raise


def is_separate(heads: Sequence[str]) -> bool:
    """Whether a head of these tensors is one that lies in a file of its own."""
    return bool(heads) and all(name.startswith(HEAD) for name in heads)


def head_file(folder: Path, task: str) -> Path:
    """Where the head of a task is written in its folder; one of no name has none there either."""
    return folder / (f"head_{task}.safetensors" if task else "head.safetensors")


def classes_of(checkpoint: Checkpoint) -> list[str]:
    """The class names that a head file brings along; none is an empty list."""
    for file in checkpoint.files:
        text = file.header.metadata.get(CLASSES)
        if text is not None and set(file.header.entries) <= set(_TENSORS):
            try:
                content = json.loads(text)
            except ValueError:
                content = None
            if not isinstance(content, list):
                raise CheckpointError(f"{shown_path(file.path)}: its classes are no JSON list")
            return [str(name) for name in content]
    return []


def class_metadata(config: Mapping[str, object] | None) -> dict[str, str]:
    """The metadata of a head file that names the classes of a config."""
    table = (config or {}).get("id2label")
    if not isinstance(table, dict):
        return {}
    names = [str(table[key]) for key in sorted(table, key=int)]
    return {CLASSES: json.dumps(names)}
