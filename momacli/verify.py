"""Make an output again from the inputs it recorded, and compare every bit of every tensor.

The recipe in its metadata, and the files that programs load with the weights, are derived again
too. Other files in its folder, such as a README.md, are named.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.checkpoint.comparison import find_difference, other_files
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.multitask import MultiTask, TaskModel
from momacli.checkpoint.multitask_writer import TaskPart
from momacli.checkpoint.provenance import Recipe, input_path
from momacli.checkpoint.weight_files import is_model_folder
from momacli.errors import CheckpointError, ConflictError, UsageError
from momacli.progress import Listener, ignore

if TYPE_CHECKING:
    from torch import Tensor

    from momacli.checkpoint.arrays import Array

_SaidOfItself = tuple[Recipe, Sequence[TaskPart]]
"""The recipe that an output should have, and its tasks' own, as it would be written of them."""


@dataclass(frozen=True)
class VerifyReport:
    """Whether an output is what its inputs and its recipe make, and if not, where."""

    path: Path
    command: str  # what made it: merge, or align, whose last step is made again
    equal: bool
    tensors: int  # that were compared, those of each head included
    first_difference: str | None  # tensor or file, and what differs
    others: tuple[str, ...]  # files in its folder that its recipe says nothing of
    seconds: float


def verify(
    output: str | Path, *, alignment: str | Path | None = None, listener: Listener = ignore
) -> VerifyReport:
    """Derive a merged or aligned model again; nothing is written.

    Inputs are hashed from the first byte to the last. Of an aligned model, the alignment is
    folded into the merged model again; the merged model can be verified by itself.

    alignment: of an aligned model, where that is no longer where `align` wrote it.

    Raises CheckpointError if the record or an input is missing, ConflictError if an input is
    not what it was.
    """
    started = time.monotonic()
    place = Path(output)
    if inner := _outputs_in(place):
        return _verify_each(place, inner, alignment, listener)
    with ExitStack() as stack:
        made = stack.enter_context(MultiTask.open(place))
        recorded = made.recipe
        if recorded is None or recorded.command not in ("merge", "align"):
            how = "moma did not write it" if recorded is None else f"moma {recorded.command} did"
            raise CheckpointError(
                f"{shown_path(place)} is not the result of a merge or an alignment: {how}",
                hint="give an output of moma merge or moma align",
            )
        if alignment is not None and recorded.command == "merge":
            raise UsageError(f"{shown_path(place)} was merged, not aligned: leave --alignment out")
        comparison = _Comparison(made)
        try:
            if recorded.command == "merge":
                recipe, parts = _merge_again(stack, recorded, place, comparison, listener)
            else:
                recipe, parts = _absorb_again(
                    stack, recorded, place, alignment, comparison, listener
                )
            comparison.finish()
            recipe = replace(recipe, tool=recorded.tool)
            what = find_difference(made, recipe, parts)
            others = tuple(other_files(made, recipe, parts))
        except _DifferenceError as found:
            what, others = found.what, ()
        seconds = time.monotonic() - started
        return VerifyReport(
            place, recorded.command, what is None, comparison.tensors, what, others, seconds
        )


def _outputs_in(place: Path) -> list[Path]:
    """The outputs of their own that a folder holds, as of a method that makes one a task."""
    if not place.is_dir() or is_model_folder(place):
        return []
    if not any(item.is_dir() for item in place.iterdir()):
        return sorted(place.glob("*.safetensors"))
    with MultiTask.open(place) as made:
        if made.recipe is not None or len(made.tasks) < 2:
            return []
        return [checkpoint.path for checkpoint in made.checkpoints]


def _verify_each(
    place: Path, inner: Sequence[Path], alignment: str | Path | None, listener: Listener
) -> VerifyReport:
    reports = [verify(one, alignment=alignment, listener=listener) for one in inner]
    differences = (f"{r.path.name}: {r.first_difference}" for r in reports if not r.equal)
    return VerifyReport(
        place,
        reports[0].command,
        all(report.equal for report in reports),
        sum(report.tensors for report in reports),
        next(differences, None),
        tuple(f"{r.path.name}/{name}" for r in reports for name in r.others),
        sum(report.seconds for report in reports),
    )


def _merge_again(
    stack: ExitStack, recorded: Recipe, place: Path, comparison: "_Comparison", listener: Listener
) -> _SaidOfItself:
    from momacli.merge_recipe import prepared_again
    from momacli.merging.computing import compute
    from momacli.merging.job import said_of_itself

    merging = prepared_again(stack, recorded, place)
    compute(merging, comparison, listener)
    return said_of_itself(merging, place)


def _absorb_again(
    stack: ExitStack,
    recorded: Recipe,
    place: Path,
    alignment: str | Path | None,
    comparison: "_Comparison",
    listener: Listener,
) -> _SaidOfItself:
    from momacli.absorb import open_inputs
    from momacli.alignment.beside import ADAPTER, ALIGNMENT, file_beside, has_adapters
    from momacli.alignment.folding import compute, parts_of, recipe_at

    if recorded.merged is None:
        raise CheckpointError(f"{shown_path(place)} does not say what it was aligned from")
    beside = file_beside(place, ADAPTER if has_adapters(recorded) else ALIGNMENT)
    found = beside if alignment is None else Path(alignment)
    if not found.is_file():
        raise CheckpointError(
            f"{shown_path(found)} does not exist, the alignment of {shown_path(place)}",
            hint="say where it is with --alignment",
        )
    merged = input_path(recorded.merged, place)
    model, folded, base = open_inputs(stack, merged, found)
    if folded.sha256() != recorded.alignment:
        raise ConflictError(
            f"{shown_path(found)} is not what {shown_path(place)} was made from",
            hint="align again, or bring the old one back",
        )
    compute(model, folded, base, comparison, listener)
    return recipe_at(place, folded, folded.sha256()), parts_of(model, folded)


class _DifferenceError(Exception):
    """The way out of a computation whose result is known to differ."""

    def __init__(self, what: str):
        self.what = what


class _Comparison:
    """Takes tensors in parts, as a writer does, and compares them with those of an output."""

    def __init__(self, made: MultiTask):
        self._made = made
        self._entries = {task: model.entries for task, model in made.tasks.items()}
        self._position: dict[tuple[str | None, str], int] = defaultdict(int)
        self.tensors = 0

    def append(self, name: str, values: "Tensor | Array") -> None:
        """Compare values of an encoder tensor, in every copy of it."""
        values = _tensor(values)
        seen = set()
        for model in self._made.tasks.values():
            self._check_known(model, name)
            where = model.checkpoint.place_of(model.keys[name])
            if where not in seen:
                self._compare(model, name, values, self._position[None, name])
            seen.add(where)
        self._advance(None, name, values)

    def append_head(self, task: str, name: str, values: "Tensor | Array") -> None:
        """Compare values of a head tensor of one task."""
        values = _tensor(values)
        if task not in self._made.tasks:
            raise _DifferenceError(f"task {shown(task)}: not in it")
        model = self._made.tasks[task]
        self._check_known(model, name)
        self._compare(model, name, values, self._position[task, name])
        self._advance(task, name, values)

    def finish(self) -> None:
        """See that the output has nothing more than what was compared."""
        for task, model in self._made.tasks.items():
            for name, entry in self._entries[task].items():
                keys = [key for key in ((None, name), (task, name)) if key in self._position]
                if not keys:
                    raise _DifferenceError(f"{self._shown(model, name)}: not made by its recipe")
                if self._position[keys[0]] != entry.elements:
                    raise _DifferenceError(f"{self._shown(model, name)}: of another shape")

    def _advance(self, task: str | None, name: str, values: "Tensor") -> None:
        self.tensors += (task, name) not in self._position or not self._position[task, name]
        self._position[task, name] += values.numel()

    def _check_known(self, model: TaskModel, name: str) -> None:
        if name not in model.keys:
            raise _DifferenceError(f"{self._shown(model, name)}: missing")

    def _compare(self, model: TaskModel, name: str, values: "Tensor", start: int) -> None:
        import torch

        found, key = self._entries[model.task][name], model.keys[name]
        if start + values.numel() > found.elements:
            raise _DifferenceError(f"{self._shown(model, name)}: of another shape")
        if values.dtype == torch.uint8 and found.dtype != "U8":  # elements of four or six bits
            written = model.checkpoint.read(key)
        else:
            written = model.checkpoint.read_range(key, start, start + values.numel())
        flat = values.reshape(-1).contiguous()
        if written.dtype != flat.dtype:
            raise _DifferenceError(
                f"{self._shown(model, name)}: expected {_word(flat)}, found {_word(written)}"
            )
        same = flat.view(torch.uint8) == written.reshape(-1).view(torch.uint8)
        if not bool(same.all()):
            where = next(_differing(same, flat.element_size()))
            raise _DifferenceError(
                f"{self._shown(model, name)}: element {start + where} is "
                f"{written[where].item()}, expected {flat[where].item()}"
            )

    def _shown(self, model: TaskModel, name: str) -> str:
        place = model.keys.get(name, name)
        several = model.checkpoint.path != self._made.path
        return f"{shown(model.task)}: {shown(place)}" if several else shown(place)


def _tensor(values: "Tensor | Array") -> "Tensor":
    import numpy as np

    from momacli.checkpoint.arrays import as_tensor

    return as_tensor(values) if isinstance(values, np.ndarray) else values


def _differing(same: "Tensor", width: int) -> Iterator[int]:
    for position in (~same).nonzero().reshape(-1).tolist():
        yield position // width


def _word(values: "Tensor") -> str:
    return str(values.dtype).removeprefix("torch.")
