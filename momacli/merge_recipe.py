"""Merge as a recipe says, or as the record of an earlier output does."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from momacli.checkpoint.description import Description, describe
from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.header import MERGEABLE_DTYPES
from momacli.checkpoint.multitask import MultiTask
from momacli.checkpoint.naming import Named, check_name
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.provenance import (
    Input,
    Recipe,
    check_unchanged,
    input_path,
    open_input,
)
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import CheckpointError, UsageError
from momacli.merging.output import Writing, write
from momacli.merging.prepare import Merging, prepare
from momacli.merging.report import MergeReport
from momacli.progress import Listener, Notice, ignore
from momacli.recipes.computed import MergedCheckpoint, OriginCheckpoint, StackedCheckpoint
from momacli.recipes.described import stacked_description
from momacli.recipes.rules import Rule
from momacli.recipes.steps import (
    File,
    MergeRecipe,
    Model,
    Origin,
    Result,
    Source,
    Step,
    check_steps,
    decode_steps,
    encode_steps,
    text_or_none,
)

RECIPES = (".toml", ".yml", ".yaml")
"""Suffixes of files that say how to merge; a config.json says what a model is."""


def read_recipe(path: str | Path) -> MergeRecipe:
    """Read a recipe.toml or a mergekit configuration, told apart by their suffix."""
    path = Path(path)
    if path.suffix.lower() not in RECIPES:
        raise UsageError(
            f"{shown_path(path)}: expected a recipe in {', '.join(RECIPES)}",
            hint="a config.json goes with the checkpoints that it describes",
        )
    if path.suffix.lower() == ".toml":
        from momacli.recipes.toml_file import read_toml

        return read_toml(path)
    from momacli.recipes.mergekit import read_mergekit

    return read_mergekit(path)


def merge_recipe(
    recipe: MergeRecipe | str | Path,
    *,
    output: str | Path | None = None,
    max_shard_size: str | None = None,
    other_base: bool = False,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> MergeReport:
    """Do the steps of a recipe and write the result of the last; no other is ever on disk.

    recipe: read already, or the path of a recipe.toml or of a mergekit configuration.
    output: in place of the recipe's; otherwise as for `merge`.
    device: for the steps whose methods compute on matrices.
    max_shard_size, other_base, allow_nonfinite, force, dry_run: as for `merge`.

    Raises MomaErrors as `merge` does, and UsageError for what is wrong in the recipe.
    """
    started = time.monotonic()
    if not isinstance(recipe, MergeRecipe):
        recipe = read_recipe(recipe)
    place = recipe.output if output is None else output
    how = Writing(place, max_shard_size, other_base, force, dry_run, listener, started)
    for note in recipe.notes:
        listener(Notice(note))
    with ExitStack() as stack:
        tolerated = Tolerated() if allow_nonfinite else None
        merging = _Chain(stack, recipe, tolerated, listener, device=device).last()
        return write(merging, how)


def merge_like(
    made: str | Path,
    *,
    output: str | Path | None = None,
    max_shard_size: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> MergeReport:
    """Repeat the merge that wrote `made`, from the inputs it recorded, where they were.

    output: default `made` itself; beside it the bytes are the same, elsewhere all but the
        recorded paths.

    Raises CheckpointError if `made` is no result of a merge or an input is gone, ConflictError
    if an input is not what it was.
    """
    place = Path(made)
    with MultiTask.open(place) as opened:
        recorded = opened.recipe
    if recorded is None or recorded.command != "merge":
        how = "moma did not write it" if recorded is None else f"it is of moma {recorded.command}"
        raise CheckpointError(
            f"{shown_path(place)} is not the result of a merge: {how}",
            hint="give an output of moma merge",
        )
    recipe, files = recorded_merge(recorded, place)
    with ExitStack() as stack:
        for item in files:
            check_unchanged(item, stack.enter_context(open_input(item, place)), place)
    return merge_recipe(
        recipe,
        output=place if output is None else output,
        max_shard_size=max_shard_size,
        other_base=True,  # it was allowed then
        allow_nonfinite=recorded.parameters.get("allow_nonfinite") is True,
        force=force,
        dry_run=dry_run,
        listener=listener,
    )


def recorded_merge(recorded: Recipe, place: Path) -> tuple[MergeRecipe, list[Input]]:
    """Return the steps that an output at `place` was made by, and the files they read.

    Raises CheckpointError if the record is odd.
    """
    try:
        if "recipe" in recorded.parameters:
            files = [_decoded_input(item) for item in recorded.parameters["files"]]
            paths = [input_path(item, place) for item in files]
            recipe = decode_steps(recorded.parameters["recipe"], paths)
        else:
            if recorded.base is None:
                raise ValueError("no base")
            files = [recorded.base, *recorded.inputs]
            recipe = MergeRecipe((_recorded_step(recorded, place),))
            check_steps(recipe.steps)
        heads = tuple(map(str, recorded.parameters.get("heads", ())))
        config, vocab = (recorded.parameters.get(key) for key in ("config", "vocab"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{shown_path(place)}: its record of how it was made cannot be understood",
            hint="it was written by another version of moma, or changed by hand",
        ) from error
    where = None if config is None else place.resolve().parent / str(config)
    return replace(recipe, heads=heads, config=where, vocab=vocab), files


def _decoded_input(content: Mapping[str, Any]) -> Input:
    files = {str(name): str(digest) for name, digest in content["files"].items()}
    return Input(str(content["name"]), str(content["path"]), files, bool(content["task_vector"]))


def _recorded_step(recorded: Recipe, place: Path) -> Step:
    """The only step of a merge whose record has no more."""
    given = dict(recorded.parameters)
    assert recorded.base is not None
    weights = given.pop("weights", None)
    step = Step(
        name="",
        method=str(given.pop("method")),
        base=_recorded_model(recorded.base, place),
        experts=tuple(_recorded_model(item, place) for item in recorded.inputs),
        weights=None if weights is None else {key: float(w) for key, w in weights.items()},
        scope=text_or_none(given.pop("scope", None)),
        seed=int(given.pop("seed", 0)),
        dtype=text_or_none(given.pop("dtype", None)),
        exclude=tuple(map(str, given.pop("exclude", ()))),
        rules=tuple(Rule.decode(item) for item in given.pop("rules", ())),
    )
    for key in ("heads", "config", "allow_nonfinite", "vocab", "rotations"):
        given.pop(key, None)
    return replace(step, options=given)


def _recorded_model(item: Input, place: Path) -> Model:
    return Model(item.name, File(input_path(item, place)))


def prepared_again(
    stack: ExitStack, recorded: Recipe, place: Path, listener: Listener = ignore
) -> Merging:
    """Prepare the merge that wrote `place`, its inputs hashed from the first byte to the last.

    Raises CheckpointError if an input is gone, ConflictError if one is not what it was.
    """
    recipe, files = recorded_merge(recorded, place)
    opened = {}
    for item in files:
        checkpoint = stack.enter_context(open_input(item, place))
        checkpoint.hash_anew()
        check_unchanged(item, checkpoint, place)
        opened[checkpoint.name, input_path(item, place)] = checkpoint
    allowed = recorded.parameters.get("allow_nonfinite") is True
    return _Chain(stack, recipe, Tolerated() if allowed else None, listener, opened).last()


class _Chain:
    """The steps of a recipe, prepared one after the other; the stack closes what is opened."""

    def __init__(
        self,
        stack: ExitStack,
        recipe: MergeRecipe,
        tolerated: Tolerated | None,
        listener: Listener,
        opened: Mapping[tuple[str, Path], Checkpoint] = MappingProxyType({}),
        *,
        device: str = "cpu",
    ):
        self._stack = stack
        self._tolerated = tolerated
        self._recipe = recipe
        self._listener = listener
        self._device = device
        self._opened = dict(opened)  # by name and path
        self._results: dict[str, MergedCheckpoint] = {}

    def last(self) -> Merging:
        """Prepare all steps; returns the one whose result is to be written."""
        for step in self._recipe.steps[:-1]:
            self._results[step.name] = self._result(step)
        step = self._recipe.steps[-1]
        merging = self._prepared(step)
        models = (step.base, *step.experts)
        if len(self._recipe.steps) == 1 and all(isinstance(m.source, File) for m in models):
            return merging
        files = [self._file(path) for path in self._recipe.files]
        recorded = (encode_steps(self._recipe), files)
        each = {task: replace(one, recorded=recorded) for task, one in merging.each.items()}
        return replace(merging, recorded=recorded, each=each)

    def _prepared(self, step: Step) -> Merging:
        return prepare(
            self._stack,
            self._named(step.base),
            [self._named(model) for model in step.experts],
            method=step.method,
            options=step.options,
            weights=step.weights,
            scope=step.scope,
            rules=step.rules,
            seed=step.seed,
            dtype=step.dtype,
            exclude=step.exclude,
            heads=None if self._recipe.as_one_model else self._recipe.heads,
            config=self._recipe.config,
            tolerated=self._tolerated,
            vocab=self._recipe.vocab,
            device=self._device,
        )

    def _result(self, step: Step) -> MergedCheckpoint:
        """What a later step reads of this one: in float32 or better."""
        merging = self._prepared(step)
        if merging.each:
            raise UsageError(
                f"step {step.name}: {step.method} makes a model of one task, and none is named",
                hint='say which with task = "NAME"',
            )
        plan = merging.work.plan
        wide = tuple(
            TensorSpec(spec.name, _wide(plan.base.entries[spec.name].dtype), spec.shape)
            for spec in plan.merged
        )
        return MergedCheckpoint(
            step.name,
            replace(merging.work, plan=replace(plan, merged=wide)),
            [*plan.merged, *plan.copied],
            merging.tasks,
            merging.inputs.descriptions,
            merging.inputs.base_description,
            self._listener,
        )

    def _named(self, model: Model) -> Named:
        opened = self._open(model.name, model.source)
        named = Named(model.name, opened.path, opened)
        check_name(named)  # it may become the name of a folder
        return named

    def _open(self, name: str, source: Source) -> Checkpoint:
        if isinstance(source, Result):
            return self._results[source.step].renamed(name)
        if isinstance(source, Origin):
            inner = self._open(name, source.source)
            return OriginCheckpoint(inner, self._description(inner))
        if isinstance(source, File):
            return self._file(source.path, name)
        pieces = [(self._file(p.source.path), p.start, p.stop) for p in source.pieces]
        description = stacked_description(self._description(pieces[0][0]), pieces)
        return StackedCheckpoint(name, pieces, description)

    def _description(self, checkpoint: Checkpoint) -> Description | None:
        if isinstance(checkpoint, StackedCheckpoint):
            return checkpoint.description
        return describe(checkpoint, self._recipe.config)

    def _file(self, path: Path, name: str | None = None) -> Checkpoint:
        """Open a file once for each name it goes by."""
        for (other, place), checkpoint in self._opened.items():
            if place == path and name in (None, other):
                return checkpoint
        opened = self._stack.enter_context(Checkpoint.open(path, name=name))
        checkpoint = self._stack.enter_context(with_head_file(opened))
        self._opened[checkpoint.name, path] = checkpoint
        return checkpoint


def _wide(dtype: str) -> str:
    assert dtype in MERGEABLE_DTYPES
    return "F64" if dtype == "F64" else "F32"
