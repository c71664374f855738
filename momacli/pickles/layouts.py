"""Which pickles of a folder are converted to what, in the layouts that are found in public.

    task_vectors   zeroshot.pt, <Task>/finetuned.pt, head_<Task>.pt
    tall_masks     <Task>Val/nonlinear_finetuned.pt, <Task>Val/nonlinear_zeroshot.pt,
                   head_<Task>Val.pt
    transformers   pytorch_model.bin, or its shards, beside a config.json
    open_clip      open_clip_pytorch_model.bin beside an open_clip_config.json
    peft           adapter_model.bin beside an adapter_config.json
    any other      NAME.pt, NAME.pth, NAME.bin

The first two become one model folder each: `zeroshot`, and a task's with its head in it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.header import is_pickle
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_WEIGHTS
from momacli.checkpoint.source import Source
from momacli.checkpoint.weight_files import ADAPTER, SINGLE
from momacli.errors import CheckpointError, ConflictError

BASE = "zeroshot"
"""Folder of the base in the output; `moma merge` takes it for the base by its name."""

_BASES = ("zeroshot.pt", "nonlinear_zeroshot.pt")
_EXPERTS = ("finetuned.pt", "nonlinear_finetuned.pt")
_HEAD = re.compile(r"head_(.+)\.pt")
_VALIDATION = "Val"
"""Ends the names of tasks whose training data was split; the same tasks."""

_WHOLE = {
    "pytorch_model.bin": SINGLE,
    "open_clip_pytorch_model.bin": OPEN_CLIP_WEIGHTS,
    "adapter_model.bin": ADAPTER,
}
_SHARD = re.compile(r"pytorch_model(-\d{5}-of-\d{5})\.bin")


@dataclass(frozen=True)
class Item:
    """A pickle, and the file within the output that it becomes."""

    source: Path
    place: PurePosixPath
    is_head: bool = False
    of_folder: bool = False  # the model is the folder that it lies in, not the file


@dataclass(frozen=True)
class Layout:
    """What a folder's pickles become."""

    items: tuple[Item, ...]
    models: tuple[str, ...] = ()  # folders of image encoders, which need open_clip's config
    architecture: str = ""  # of these, as their folder is called
    passed_over: tuple[str, ...] = ()  # pickles that are not converted, and why
    described_by: Path | None = None  # the folder with the config.json and the like
    shards: bool = False


def find_layout(folder: Path) -> Layout:
    """Recognise a folder's layout. Raises CheckpointError if there is no pickle in it.

    Of the first two layouts, the folder of one architecture or the one that holds it.
    """
    if _is_published(folder):
        return _published(folder)
    inner = [path for path in _folders(folder) if _is_published(path)]
    if len(inner) > 1:
        raise ConflictError(
            f"{shown_path(folder)} holds models of {len(inner)} architectures",
            details=[shown_path(path) for path in inner],
            hint="convert one of these folders at a time",
        )
    if inner:
        return _published(inner[0])
    return _plain(folder)


def plain_items(sources: Iterable[Path]) -> tuple[Item, ...]:
    """Files that keep their names. Raises ConflictError where two would become one."""
    items: dict[PurePosixPath, Item] = {}
    for source in sources:
        item = Item(source, PurePosixPath(f"{source.stem}.safetensors"))
        other = items.setdefault(item.place, item)
        if other is not item:
            raise ConflictError(
                f"{shown_path(source)} and {shown_path(other.source)} would both become "
                f"{item.place}",
                hint="convert them one at a time",
            )
    return tuple(items.values())


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _is_published(folder: Path) -> bool:
    tasks = [task / name for task in _folders(folder) for name in _EXPERTS]
    return any(path.is_file() for path in [folder / _BASES[0], *tasks])


def _published(folder: Path) -> Layout:
    """task_vectors and tall_masks."""
    experts: dict[str, Path] = {}
    bases = [folder / name for name in _BASES]
    for task in _folders(folder):
        found = next((task / name for name in _EXPERTS if (task / name).is_file()), None)
        bases += [task / name for name in _BASES]
        if found is not None:
            name = task.name.removesuffix(_VALIDATION)
            other = experts.setdefault(name, found)
            if other is not found:
                raise ConflictError(
                    f"there are two experts of task {name}",
                    details=[shown_path(other), shown_path(found)],
                    hint="move one of the folders elsewhere",
                )
    base = next((path for path in bases if path.is_file()), None)
    items = [] if base is None else [Item(base, PurePosixPath(BASE, SINGLE), of_folder=True)]
    used = {item.source for item in items}
    for name, expert in experts.items():
        items.append(Item(expert, PurePosixPath(name, SINGLE), of_folder=True))
        spellings = (expert.parent.name, name, name + _VALIDATION)
        heads = [folder / f"head_{spelling}.pt" for spelling in spellings]
        head = next((path for path in heads if path.is_file()), None)
        if head is not None:
            place = PurePosixPath(name, f"head_{name}.safetensors")
            items.append(Item(head, place, is_head=True, of_folder=True))
            used.add(head)
    return Layout(
        tuple(items),
        models=(*([] if base is None else [BASE]), *experts),
        architecture=folder.resolve().name,
        passed_over=tuple(_passed_over(folder, used | set(experts.values()), set(bases))),
    )


def _passed_over(folder: Path, used: set[Path], bases: set[Path]) -> list[str]:
    """The other pickles, and why they are not converted; of the base there are often copies."""
    lines = []
    for path in sorted([*folder.glob("*.pt"), *folder.glob("*/*.pt")]):
        if path in used or path in bases:
            continue
        name = shown_path(path.relative_to(folder))
        if _HEAD.fullmatch(path.name) and path.parent == folder:
            lines.append(f"{name}: a head without an expert of its task")
        else:
            lines.append(name)
    return lines


def _plain(folder: Path) -> Layout:
    """The pickles that lie in a folder, by their content; of transformers, the model alone."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    shards = [path for path in files if _SHARD.fullmatch(path.name)]
    models = {folder / name: place for name, place in _WHOLE.items() if folder / name in files}
    if models:
        items = tuple(Item(path, PurePosixPath(models[path]), of_folder=True) for path in models)
        return Layout(items, described_by=folder, passed_over=_others(files, list(models)))
    if shards:
        items = tuple(
            Item(path, PurePosixPath(_shard_name(path.name)), of_folder=True) for path in shards
        )
        return Layout(items, described_by=folder, shards=True, passed_over=_others(files, shards))
    pickles = [path for path in files if _is_pickle(path)]
    if not pickles:
        raise CheckpointError(
            f"{shown_path(folder)} holds no pickles",
            hint="give the files, or a folder such as ViT-B-32/ with zeroshot.pt and "
            "TASK/finetuned.pt",
        )
    return Layout(plain_items(pickles), described_by=folder)


def _shard_name(name: str) -> str:
    found = _SHARD.fullmatch(name)
    assert found is not None
    return f"model{found[1]}.safetensors"


def _others(files: Sequence[Path], used: Sequence[Path]) -> tuple[str, ...]:
    return tuple(
        shown_path(Path(path.name)) for path in files if path not in used and _is_pickle(path)
    )


def _is_pickle(path: Path) -> bool:
    with Source(path) as source:
        return is_pickle(source.read(512, 0))
