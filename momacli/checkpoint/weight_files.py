"""Which files of a path are a checkpoint: one file, a folder's only one, its shards, an adapter."""

import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.header import is_pickle
from momacli.checkpoint.index import read_index
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_WEIGHTS
from momacli.checkpoint.source import Source, unreadable
from momacli.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def weight_files(path: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files a checkpoint consists of, and of a sharded folder its index.

    In a folder that holds both, `model.safetensors` counts, as it does for `from_pretrained`.
    Raises CheckpointError, naming what is missing or ambiguous.
    """
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [path], None
        if (path / ADAPTER_CONFIG).is_file():
            return [_adapter_file(path)], None
        if (path / SINGLE).is_file():
            return [path / SINGLE], None
        if (path / INDEX).is_file():
            index = read_index(path / INDEX)
            return [path / shard for shard in sorted(set(index.values()))], index
        if (path / OPEN_CLIP_WEIGHTS).is_file():
            return [path / OPEN_CLIP_WEIGHTS], None
        others = sorted(path.glob("*.safetensors"))
        pickles = [] if others else _pickles(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if len(others) == 1:
        return others, None
    if not others and not pickles and (inner := _adapters_in(path)):
        raise CheckpointError(
            f"{shown_path(path)} is a folder of adapters, expected a model",
            details=inner,
            hint="adapters are experts of a merge: moma merge FOLDER/* --base BASE makes models",
        )
    if others:
        hint = "give one of them, or save the shards with their index"
    elif pickles:
        hint = f"{pickles[0]} is a pickle: moma convert reads its tensors and runs nothing"
    else:
        hint = "give a .safetensors file or a folder written by save_pretrained"
    raise CheckpointError(
        f"{shown_path(path)} holds no {SINGLE} and no {INDEX}",
        details=[shown_path(file.relative_to(path)) for file in others],
        hint=hint,
    )


def _adapters_in(path: Path) -> list[str]:
    return [shown_path(one.parent) for one in sorted(path.glob(f"*/{ADAPTER_CONFIG}"))]


def _adapter_file(path: Path) -> Path:
    """The weights of an adapter; beside a whole model nobody can tell which of them is meant."""
    models = [name for name in (SINGLE, INDEX) if (path / name).is_file()]
    if models:
        raise CheckpointError(
            f"{shown_path(path)} holds both a model and an adapter",
            details=[*models, ADAPTER_CONFIG],
            hint="move one of them to a folder of its own",
        )
    if not (path / ADAPTER).is_file():
        pickles = ", ".join(_pickles(path))
        raise CheckpointError(
            f"{shown_path(path)} holds an {ADAPTER_CONFIG} but no {ADAPTER}",
            hint=f"{pickles} is a pickle: moma convert reads its tensors and runs nothing"
            if pickles
            else "download the rest of the folder",
        )
    return path / ADAPTER


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model or an adapter under the names that libraries look for."""
    return any(
        (path / name).is_file() for name in (SINGLE, INDEX, ADAPTER_CONFIG, OPEN_CLIP_WEIGHTS)
    )


def _pickles(folder: Path) -> list[str]:
    """Names of the files in a folder that are pickles by their content."""
    found = []
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with suppress(CheckpointError), Source(file) as source:
                if is_pickle(source.read(512, 0)):
                    found.append(shown_path(Path(file.name)))
    return found
