"""Merge fine-tuned copies of one model, tensor by tensor, without data."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from momacli.checkpoint.naming import find_base, named_inputs
from momacli.checkpoint.nonfinite import Tolerated
from momacli.errors import UsageError
from momacli.merging.output import Writing, write
from momacli.merging.prepare import prepare
from momacli.merging.report import MergeReport
from momacli.methods._catalog import known_method, load_method
from momacli.progress import Listener, ignore
from momacli.recipes.rules import Rule


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
    device: str = "cpu",
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
    seed: of the methods that draw random numbers.
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
    device: auto, cpu or cuda, for methods that compute on matrices. Another device rounds
        otherwise in the last bits.
    force: replace an existing output even if moma did not write it.

    Raises ConflictError listing all that does not fit, before any data is read, and other
    MomaErrors; nothing is written then.
    """
    how = Writing(output, max_shard_size, other_base, force, dry_run, listener)
    if device != "cpu" and not load_method(method).computes_on_matrices:
        raise UsageError(
            f"method {method} works entry by entry, faster than a GPU could be fed",
            hint="leave --device out",
        )
    known_method(method)  # an unknown one is refused before any file is looked at
    with ExitStack() as stack:
        found_base, named = find_base(named_inputs(inputs), base)
        merging = prepare(
            stack,
            found_base,
            named,
            method=method,
            options=options,
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
            device=device,
            listener=listener,
        )
        return write(merging, how)
