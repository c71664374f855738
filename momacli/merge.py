"""Merge fine-tuned copies of one model, tensor by tensor or from unlabeled samples."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.naming import find_base, named_inputs
from momacli.checkpoint.nonfinite import Tolerated
from momacli.data.reading import Reading
from momacli.errors import UsageError
from momacli.merging.catalog import find_method, known_method, method_names, sample_method
from momacli.merging.output import Writing, write
from momacli.merging.prepare import Merging, prepare
from momacli.merging.report import MergeReport
from momacli.progress import Listener, Notice, ignore
from momacli.recipes.rules import Rule

if TYPE_CHECKING:
    from momacli.data.folders import Data
    from momacli.merging.learned import Coefficients


def merge(
    inputs: Sequence[str | Path],
    *,
    method: str = "task-arithmetic",
    base: str | Path | None = None,
    output: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    scope: str | None = None,
    rules: Sequence[Rule] = (),
    seed: int = 0,
    dtype: str | None = None,
    exclude: Sequence[str] = (),
    heads: Sequence[str] = (),
    config: str | Path | None = None,
    vocab: str | None = None,
    max_shard_size: str | None = None,
    other_base: bool = False,
    allow_nonfinite: bool = False,
    device: str | None = None,
    data: "Data | None" = None,
    reading: Reading | None = None,
    pooling: str | None = None,
    features: str | None = None,
    checkpoint_every: int = 100,
    force: bool = False,
    dry_run: bool = False,
    listener: Listener = ignore,
) -> MergeReport:
    """Merge checkpoints (files, model folders, or task vectors) and write the result.

    inputs: paths, or "NAME=PATH"; one of them may be the base, by its name base, pretrained
        or zeroshot.
    output: a name in .safetensors is a file, any other a folder with one loadable model per
        task, or with one model where the experts are no classifiers and have no heads, as
        language models; default `merged/` where all experts are folders, else `merged.safetensors`.
    options: of the method, such as {"lam": 0.3, "density": 0.2}.
    weights: one per expert in the order given, or by task name, then 1 for the others.
    scope: whether statistics of a method with a first pass are of the whole model ("global",
        the default) or of each tensor by itself ("tensor").
    rules: other options and weights for single tensors, found by glob patterns.
    seed: of the methods that draw random numbers or see samples.
    dtype: of the merged tensors, default the base's; also allows inputs of different types.
    exclude: glob patterns of tensors to take from the base unmerged.
    heads: glob patterns of head tensors, where the architecture does not tell.
    config: a config.json for all inputs, where none is with the weights.
    vocab: what to do where experts have more or fewer rows of embeddings than the base: "base"
        takes as many as the base has, and what an expert lacks counts as unchanged; "min" as
        many as all have. By default that is a conflict.
    max_shard_size: of a folder of one model, bytes of the tensors of one file, such as "5GB";
        default 50GB, as transformers 5 has it.
    other_base: let task vectors be added to another base than they were taken from.
    allow_nonfinite: take entries that are NaN or infinity in an input from the base, and name
        them in Notices, instead of refusing the input.
    device: auto, cpu or cuda, for methods that compute on matrices, by default the processor,
        and for those that see samples, by default auto. Another device rounds otherwise in the
        last bits.
    data, reading, pooling, features: as for `align`, for methods that see unlabeled samples of
        every task; without a choice in `reading` as many as the method says.
    checkpoint_every: steps after which what is learned is kept beside the output, so that the
        same call goes on where a run was stopped; 0 keeps it only when the run is interrupted.
    force: replace an existing output even if moma did not write it.

    Raises ConflictError listing all that does not fit, before any data is read, and other
    MomaErrors; nothing is written then.
    """
    how = Writing(output, max_shard_size, other_base, force, dry_run, listener)
    known = known_method(method)  # an unknown one is refused before any file is looked at
    own = {"pooling": pooling, "features": features}
    learning = sample_method(known) is not None
    _check_samples(known, {"data": data, "reading": reading, **own}, learning=learning)
    if device not in (None, "cpu") and not find_method(known).computes_on_matrices:
        raise UsageError(
            f"method {method} works entry by entry, faster than a GPU could be fed",
            hint="leave --device out",
        )
    with ExitStack() as stack:
        given = named_inputs(inputs)
        found_base, named = find_base(given, base)
        if base is not None and len(named) < len(given):
            place = shown_path(found_base.path)
            listener(Notice(f"{place} is the base, and so is not taken for an expert, too"))
        merging = prepare(
            stack,
            found_base,
            named,
            method=method,
            options={**(options or {}), **own} if learning else options,
            weights=weights,
            scope=scope,
            rules=rules,
            seed=seed,
            dtype=dtype,
            exclude=exclude,
            heads=heads,
            config=Path(config) if config else None,
            tolerated=Tolerated() if allow_nonfinite else None,
            vocab=vocab,
            device=device or "cpu",
            listener=listener,
            learning=learning,
        )
        if data is None:
            return write(merging, how)
        return _learn(merging, how, data, reading or Reading(), device, checkpoint_every)


def _check_samples(method: str, given: Mapping[str, Any], *, learning: bool) -> None:
    """Refuse samples that nobody looks at, and their absence where they are needed."""
    if learning and given["data"] is None:
        raise UsageError(
            f"method {method} needs unlabeled samples of every task",
            hint="say where they are with --data FOLDER, with a folder or text file of each task",
        )
    wrong = [key for key, value in given.items() if value is not None]
    if "data" in wrong and "reading" in wrong:
        wrong.remove("reading")
    if wrong and not learning:
        names = [name for name in method_names() if sample_method(name)]
        what = {"reading": "--max-samples and the like"}
        raise UsageError(
            f"method {method} looks at no samples: it has no use for "
            f"{', '.join(what.get(key, f'--{key}') for key in wrong)}",
            hint=f"those that do are {', '.join(names)}",
        )


def _learn(
    merging: Merging,
    how: Writing,
    data: "Data",
    reading: Reading,
    device: str | None,
    checkpoint_every: int,
) -> MergeReport:
    """See that all fits and that the output may be written; then learn, and write."""
    from momacli.merging.learning import Learning
    from momacli.models.device import choose_device

    chosen = choose_device(device or "auto")
    learning = Learning.of(merging, data, reading, chosen, how.listener)
    checked = write(merging, replace(how, dry_run=True))
    if how.dry_run:
        return checked
    state = checked.output.with_name(f"{checked.output.stem}.state.safetensors")
    merged, keeper = learning.run(state, checkpoint_every)
    report = write(merged, how)
    keeper.discard()
    found: Coefficients = merged.selection["coefficients"]
    means = {task: sum(table.values()) / len(table) for task, table in found.items()}
    return replace(report, samples=merged.selection["samples"], coefficients=means)
