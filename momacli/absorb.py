"""Fold a mask and transforms into the weights of a merged model; nothing is added to it."""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from momacli.alignment.folding import AbsorbReport, record_merged, write_absorbed
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.provenance import check_unchanged, open_input
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.renaming import under_names_of
from momacli.errors import ConflictError, UsageError
from momacli.progress import Listener, ignore

if TYPE_CHECKING:
    from momacli.alignment.alignment import Alignment


def absorb(
    merged: str | Path,
    alignment: str | Path,
    *,
    output: str | Path | None = None,
    base: str | Path | None = None,
    force: bool = False,
    listener: Listener = ignore,
) -> AbsorbReport:
    """Write theta_0 + h M * (theta_m - theta_0) with heads W_t A_t (MOMA section 4).

    output: default `aligned/` for a folder, `aligned.safetensors` for a file.
    base: where the base is now, if it is no longer where the merge found it.

    Raises ConflictError if the alignment was made for another merged model.
    """
    from momacli.alignment.alignment import open_alignment

    started = time.monotonic()
    with ExitStack() as stack:
        model = stack.enter_context(MultiTask.open(Path(merged)))
        found = stack.enter_context(open_alignment(Path(alignment)))
        if found.adapters:
            raise ConflictError(
                f"{alignment} holds adapters, which cannot be folded into weights",
                hint="keep the file beside the model that moma align wrote with it",
            )
        _check_fit(model, found, Path(alignment))
        names = next(iter(model.tasks.values())).keys
        opened = under_names_of(_open_base(stack, found, Path(alignment), base), names)
        target = choose_output(
            output,
            "aligned" if model.path.is_dir() else "aligned.safetensors",
            inputs=[model.path, Path(alignment), opened.path],
            force=force,
        )
        report = write_absorbed(
            model, found, opened, target, digest=found.sha256, listener=listener
        )
        return replace(report, seconds=time.monotonic() - started)


def open_inputs(
    stack: ExitStack, merged: Path, alignment: Path, base: str | Path | None = None
) -> "tuple[MultiTask, Alignment, Checkpoint]":
    """Open a merged model, its alignment and its base, and see that they belong together.

    All is hashed from the first byte to the last.
    """
    from momacli.alignment.alignment import open_alignment

    model = stack.enter_context(MultiTask.open(merged))
    for checkpoint in model.checkpoints:
        checkpoint.hash_anew()
    found = stack.enter_context(open_alignment(alignment))
    assert found.checkpoint is not None
    found.checkpoint.hash_anew()
    _check_fit(model, found, alignment)
    opened = _open_base(stack, found, alignment, base)
    opened.hash_anew()
    if found.recipe.base is not None:
        check_unchanged(found.recipe.base, opened, alignment)
    return model, found, under_names_of(opened, next(iter(model.tasks.values())).keys)


def _check_fit(model: MultiTask, alignment: "Alignment", path: Path) -> None:
    expected = alignment.recipe.merged
    found = record_merged(model, path)
    if expected is None or dict(expected.files) != dict(found.files):
        raise ConflictError(
            f"{path} was not made for {model.path} as it is now",
            hint="align again, or give the merged model it was made for",
        )


def _open_base(
    stack: ExitStack, alignment: "Alignment", path: Path, base: str | Path | None
) -> Checkpoint:
    recorded = alignment.recipe.base
    if base is not None:
        opened = stack.enter_context(Checkpoint.open(Path(base)))
    elif recorded is not None:
        opened = stack.enter_context(open_input(recorded, path))
    else:
        raise UsageError(f"{path} does not name its base", hint="give it with --base")
    if recorded is not None:
        check_unchanged(recorded, opened, path)
    return opened
