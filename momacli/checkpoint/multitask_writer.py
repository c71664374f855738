"""Write a model of several tasks, as a file or as one loadable folder a task."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from momacli.checkpoint.card import CARD, card
from momacli.checkpoint.description import Description
from momacli.checkpoint.head_files import HEAD, class_metadata, head_file, is_separate
from momacli.checkpoint.multitask import ENCODER_SHARD, HEAD_SHARD
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG
from momacli.checkpoint.plan import TASK_HEADS
from momacli.checkpoint.provenance import KEY, Recipe
from momacli.checkpoint.sharded_writer import ShardedWriter, sharded_writer
from momacli.checkpoint.staging import staged_file, staged_folder
from momacli.checkpoint.weight_files import INDEX, SINGLE
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array


@dataclass(frozen=True)
class TaskPart:
    """What is a task's own in the output: its head's tensors and its description."""

    task: str
    heads: Sequence[TensorSpec]  # by their own names
    description: Description | None
    metrics: Mapping[str, float] = field(default_factory=dict)  # for the card

    @property
    def names(self) -> list[str]:
        """The names of the head's tensors."""
        return [spec.name for spec in self.heads]


class Sink(Protocol):
    """What takes the tensors of a model of several tasks, each in consecutive parts."""

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Take values of an encoder tensor."""
        ...

    def append_head(self, task: str, name: str, values: "Tensor | Array") -> None:
        """Take values of a head tensor of one task, by the tensor's own name."""
        ...


class Draft(Sink, Protocol):
    """A sink whose values can be replaced until it is finished."""

    def replace(self, name: str, start: int, values: "Tensor | Array") -> None:
        """Take values of an encoder tensor in the place of those from element `start` on."""
        ...


class MultiTaskWriter:
    """An open output; encoder tensors are written once, head tensors once for their task."""

    def __init__(
        self,
        encoder: CheckpointWriter | ShardedWriter,
        heads: Mapping[str, tuple[CheckpointWriter | ShardedWriter, Callable[[str], str]]],
        on_finish: Callable[[Recipe], None] | None = None,
    ):
        self._encoder = encoder
        self._on_finish = on_finish
        self._heads = heads  # task -> (writer, name of a head tensor to its name in there)

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Append values to an encoder tensor."""
        self._encoder.append(name, values)

    def replace(self, name: str, start: int, values: "Tensor | Array") -> None:
        """Put values in the place of appended ones, from element `start` of a tensor on."""
        self._encoder.replace(name, start, values)

    def append_head(self, task: str, name: str, values: "Tensor | Array") -> None:
        """Append values to a head tensor of one task, by the tensor's own name."""
        writer, named = self._heads[task]
        writer.append(named(name), values)

    def files(self) -> list[Path]:
        """Where the files of the encoder are, while they are being written."""
        return self._encoder.files()

    def leave_to_others(self, names: Iterable[str]) -> None:
        """Take these encoder tensors for written: another process has put them in place."""
        self._encoder.leave_to_others(names)

    def finish(self, recipe: Recipe) -> None:
        """Record the final recipe; its text has the length of the one given at the start."""
        for writer in {id(item): item for item in self._writers()}.values():
            writer.replace_metadata(_metadata(recipe))
        if self._on_finish is not None:
            self._on_finish(recipe)

    def _writers(self) -> Iterator[CheckpointWriter | ShardedWriter]:
        yield self._encoder
        for writer, _ in self._heads.values():
            yield writer


@contextmanager
def multitask_writer(
    target: Path,
    encoder: Sequence[TensorSpec],
    parts: Sequence[TaskPart],
    recipe: Recipe,
    *,
    as_folder: bool,
    extras: Mapping[str, Callable[[Path], None]] | None = None,
) -> Iterator[MultiTaskWriter]:
    """Open the output `target`; it appears, whole, when the block ends without an exception.

    extras: for a folder, further files by name and what writes each to a path it is given;
        they are there before the first tensor is.
    """
    if as_folder:
        with _folder_writer(target, encoder, parts, recipe, extras or {}) as writer:
            yield writer
    else:
        assert not extras
        with _file_writer(target, encoder, parts, recipe) as writer:
            yield writer


@contextmanager
def _file_writer(
    target: Path, encoder: Sequence[TensorSpec], parts: Sequence[TaskPart], recipe: Recipe
) -> Iterator[MultiTaskWriter]:
    heads = [
        TensorSpec(f"{TASK_HEADS}{part.task}.{spec.name}", spec.dtype, spec.shape)
        for part in parts
        for spec in part.heads
    ]
    with (
        staged_file(target) as staged,
        CheckpointWriter(staged, [*encoder, *heads], _metadata(recipe)) as writer,
    ):
        places = {part.task: (writer, f"{TASK_HEADS}{part.task}.".__add__) for part in parts}
        yield MultiTaskWriter(writer, places)


@contextmanager
def _folder_writer(
    target: Path,
    encoder: Sequence[TensorSpec],
    parts: Sequence[TaskPart],
    recipe: Recipe,
    extras: Mapping[str, Callable[[Path], None]],
) -> Iterator[MultiTaskWriter]:
    with staged_folder(target) as staged:
        for name, write in extras.items():
            write(staged / name)
        with ExitStack() as stack:
            shared = staged / ENCODER_SHARD
            encoder_writer = stack.enter_context(
                CheckpointWriter(shared, encoder, _metadata(recipe))
            )
            heads = {}
            for part in parts:
                folder = staged / part.task
                folder.mkdir()
                _describe(folder, part)
                if part.heads:
                    shard = _head_writer(folder, part, _metadata(recipe))
                    heads[part.task] = (stack.enter_context(shard), _name_in_file)

            def finish(recipe: Recipe) -> None:
                for part in parts:
                    _write_card(staged / part.task, part, recipe, target)

            yield MultiTaskWriter(encoder_writer, heads, finish)
        for part in parts:
            sharded = part.heads and not is_separate(part.names)
            _link(shared, staged / part.task / (ENCODER_SHARD if sharded else SINGLE))
            if sharded:
                (staged / part.task / INDEX).write_text(_index(encoder, part), encoding="utf-8")
        shared.unlink()


@contextmanager
def model_writer(
    target: Path, encoder: Sequence[TensorSpec], part: TaskPart, recipe: Recipe, *, largest: int
) -> Iterator[MultiTaskWriter]:
    """Open a folder of one model, of one task or of none; it appears, whole, when the block ends.

    largest: bytes of the tensors of one file.
    """
    separate = is_separate(part.names)
    specs = [*encoder, *([] if separate else part.heads)]
    with staged_folder(target) as staged, ExitStack() as stack:
        _describe(staged, part)
        files = sharded_writer(staged, specs, _metadata(recipe), largest=largest)
        writer = stack.enter_context(files)
        heads: CheckpointWriter | ShardedWriter = writer
        if separate:
            named = replace(part, task=part.task if target.name == part.task else "")
            heads = stack.enter_context(_head_writer(staged, named, _metadata(recipe)))

        def finish(recipe: Recipe) -> None:
            _write_card(staged, part, recipe, target)

        named_heads = {part.task: (heads, _name_in_file if separate else str)}
        yield MultiTaskWriter(writer, named_heads, finish)


def _head_writer(folder: Path, part: TaskPart, metadata: dict[str, str]) -> CheckpointWriter:
    """Open the file of a task's head: a shard of its model, or a file of its own."""
    if not is_separate(part.names):
        return CheckpointWriter(folder / HEAD_SHARD, part.heads, metadata)
    specs = [replace(spec, name=_name_in_file(spec.name)) for spec in part.heads]
    metadata = metadata | class_metadata(part.description.config if part.description else None)
    return CheckpointWriter(head_file(folder, part.task), specs, metadata)


def _name_in_file(name: str) -> str:
    return name.removeprefix(HEAD)


def _describe(folder: Path, part: TaskPart) -> None:
    """Copy what is no weight: config.json, processor and tokenizer files."""
    for name, content in beside_weights(part).items():
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, place)
        else:
            place.write_bytes(content)


def _write_card(folder: Path, part: TaskPart, recipe: Recipe, target: Path) -> None:
    """Write the README.md of a model folder, where there is a model that loads."""
    if part.description is None:
        return
    of_open_clip = part.description.file_name == OPEN_CLIP_CONFIG
    text = card(
        part.task or target.name,
        recipe,
        target,
        library="open_clip" if of_open_clip else "transformers",
        metrics=part.metrics,
    )
    (folder / CARD).write_bytes(text.encode("utf-8", "backslashreplace"))


def beside_weights(part: TaskPart) -> dict[str, bytes | Path]:
    """What a folder of this part holds that is no weight: its content, or the file it is of."""
    if part.description is None:
        return {}
    text = json.dumps(part.description.config, indent=2, sort_keys=True) + "\n"
    files: dict[str, bytes | Path] = {part.description.file_name: text.encode()}
    for file in part.description.companions:
        assert part.description.folder is not None
        files[file.relative_to(part.description.folder).as_posix()] = file
    return files


def _link(source: Path, target: Path) -> None:
    """Give one file a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _index(encoder: Sequence[TensorSpec], part: TaskPart) -> str:
    table = {spec.name: ENCODER_SHARD for spec in encoder}
    table |= {spec.name: HEAD_SHARD for spec in part.heads}
    size = sum(spec.nbytes for spec in [*encoder, *part.heads])
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
    return json.dumps(content, indent=2) + "\n"


def _metadata(recipe: Recipe) -> dict[str, str]:
    return {"format": "pt", KEY: recipe.encode()}
