"""What becomes of every tensor of a merge, decided from headers before any data is read."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.header import FP8_DTYPES, MERGEABLE_DTYPES, TensorEntry
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.provenance import Recipe, decode_recipe
from momacli.checkpoint.reader import Checkpoint, matches
from momacli.checkpoint.writer import TensorSpec
from momacli.errors import CheckpointError, ConflictError, UsageError

Vocab = Literal["base", "min"]

TASK_HEADS = "heads."
"""Prefix of head tensors in a file of several tasks: heads.<task>.<name>."""


@dataclass(frozen=True)
class Expert:
    """One fine-tuned copy, or its task vector, and the tensors of its head by their own names."""

    checkpoint: Checkpoint
    heads: Mapping[str, str]  # the head tensor's own name -> its name in the checkpoint
    vector_of: Recipe | None = None  # how it was made, if it is a task vector

    @property
    def name(self) -> str:
        """The task's name."""
        return self.checkpoint.name

    @property
    def is_task_vector(self) -> bool:
        """Whether the checkpoint holds theta_t - theta_0 rather than theta_t."""
        return self.vector_of is not None


@dataclass(frozen=True)
class MergePlan:
    """The encoder's tensors of the output: which are merged, which come from the base."""

    base: Checkpoint
    experts: tuple[Expert, ...]
    merged: tuple[TensorSpec, ...]  # in the base's order, in the output's type
    copied: tuple[TensorSpec, ...]  # integers and what was excluded, from the base
    left_out: tuple[str, ...]  # excluded or integer tensors of experts that the base lacks
    tolerated: Tolerated | None = None  # what is not finite; by default that is an error

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All that is read: the base, then the experts."""
        return [self.base, *(expert.checkpoint for expert in self.experts)]


def expert_from(checkpoint: Checkpoint, head_names: Iterable[str]) -> Expert:
    """Take a checkpoint for an expert; a file written by `task-vector` is one by its recipe."""
    recipe = task_vector_recipe(checkpoint)
    if recipe is None:
        return Expert(checkpoint, {key: key for key in head_names})
    prefix = f"{TASK_HEADS}{recipe.tasks[0]}."
    heads = {own: prefix + own for own in recipe.heads if prefix + own in checkpoint.entries}
    return Expert(checkpoint, heads, recipe)


def task_vector_recipe(checkpoint: Checkpoint) -> Recipe | None:
    """How a task vector was made; None for what is none. Raises CheckpointError if it is odd."""
    recipe = decode_recipe(checkpoint.metadata, checkpoint.path)
    if recipe is None or recipe.command != "task-vector":
        return None
    if len(recipe.tasks) != 1 or recipe.base is None:
        raise CheckpointError(
            f"{checkpoint.path} says it is a task vector, but not of which task and base",
            hint="write it again with moma task-vector",
        )
    return recipe


def check_patterns(option: str, patterns: Iterable[str], checkpoints: Iterable[Checkpoint]) -> None:
    """Refuse glob patterns that match no tensor at all: they are misspelt. Raises UsageError."""
    names = {key for checkpoint in checkpoints for key in checkpoint.entries}
    for pattern in patterns:
        if not any(matches(key, [pattern]) for key in names):
            raise UsageError(
                f"{option} '{shown(pattern)}' matches no tensor of any input",
                hint=f"names look like {shown(min(names, default=''))}",
            )


def plan_merge(
    base: Checkpoint,
    experts: Sequence[Expert],
    *,
    base_heads: Iterable[str] = (),
    exclude: Sequence[str] = (),
    dtype: str | None = None,
    tolerated: Tolerated | None = None,
    vocab: Vocab | None = None,
) -> MergePlan:
    """Match the experts with the base by tensor names.

    base_heads: tensors of the base that belong to a head of its own, and are left behind.
    exclude: glob patterns of tensors to take from the base unmerged.
    dtype: type code of the merged tensors, by default the base's own; giving one also allows
        inputs whose types differ.
    tolerated: takes note of NaN and infinity in inputs, which are otherwise errors.
    vocab: what to do where experts have more or fewer rows of the vocabulary: "base" takes
        the base's number, where rows that an expert lacks count as unchanged; "min" the
        smallest number that any has. None refuses them.

    Raises ConflictError listing every tensor of every expert that does not fit.
    """
    own_heads = set(base_heads)
    encoder = {key: entry for key, entry in base.entries.items() if key not in own_heads}
    merged: list[TensorSpec] = []
    copied: list[TensorSpec] = []
    for key, entry in encoder.items():
        if entry.dtype in MERGEABLE_DTYPES and not matches(key, exclude):
            merged.append(TensorSpec(key, dtype or entry.dtype, entry.shape))
        else:
            copied.append(TensorSpec(key, entry.dtype, entry.shape))
    _refuse_scaled([base, *(expert.checkpoint for expert in experts)], merged)
    left_out: set[str] = set()
    details: list[str] = []
    hint = None
    vocabulary = _vocabulary(merged, encoder, experts)
    if vocabulary and vocab == "min":
        merged = [_cut(spec, vocabulary) for spec in merged]
    for expert in experts:
        heads = set(expert.heads.values())
        found = {key: e for key, e in expert.checkpoint.entries.items() if key not in heads}
        details += _conflicts(
            expert,
            merged,
            encoder,
            found,
            any_dtype=dtype is not None,
            other_rows=vocab is not None and vocabulary is not None,
        )
        unknown = {key: entry for key, entry in found.items() if key not in encoder}
        for key, entry in unknown.items():
            if matches(key, exclude) or entry.dtype not in MERGEABLE_DTYPES:
                left_out.add(key)
            else:
                details.append(f"{expert.name}: {shown(key)}   extra {entry}")
        hint = hint or _prefix_hint(encoder.keys() - found.keys(), unknown.keys())
    if details:
        what = (
            "1 tensor of the experts does"
            if len(details) == 1
            else (f"{len(details)} tensors of the experts do")
        )
        raise ConflictError(
            f"{what} not fit the base {base.path}",
            details=details,
            hint=hint or _hint(details, vocabulary),
        )
    return MergePlan(
        base, tuple(experts), tuple(merged), tuple(copied), tuple(sorted(left_out)), tolerated
    )


_SCALES = ("_scale", "_scale_inv", "_scale_2")
_SCALES_OF_MODULE = ("scale_weight", "weight_scale", "weight_scale_inv")
"""What the scales of a weight in eight bits are called after it, or beside it."""


def _refuse_scaled(checkpoints: Sequence[Checkpoint], merged: Sequence[TensorSpec]) -> None:
    """Refuse weights in eight bits that mean something only together with their scales."""
    details = []
    for checkpoint in checkpoints:
        entries = checkpoint.entries
        for spec in merged:
            if spec.name not in entries or entries[spec.name].dtype not in FP8_DTYPES:
                continue
            module = spec.name.rpartition(".")[0]
            names = [spec.name + scale for scale in _SCALES]
            names += [f"{module}.{scale}" for scale in _SCALES_OF_MODULE]
            if found := next((name for name in names if name in entries), None):
                details.append(f"{checkpoint.name}: {shown(spec.name)}   scaled by {shown(found)}")
    if details:
        raise ConflictError(
            "weights in eight bits with scales beside them cannot be merged by their values",
            details=details,
            hint="save the models with the scales multiplied in, in bfloat16, and merge those; "
            "or take these tensors from the base with --exclude",
        )


def _conflicts(
    expert: Expert,
    merged: Sequence[TensorSpec],
    encoder: dict[str, TensorEntry],
    found: dict[str, TensorEntry],
    *,
    any_dtype: bool,
    other_rows: bool,
) -> list[str]:
    """One line for each tensor to be merged that the expert has not, or has otherwise."""
    lines = []
    for spec in merged:
        expected, entry = encoder[spec.name], found.get(spec.name)
        what = f"{expert.name}: {shown(spec.name)}"
        if entry is None:
            lines.append(f"{what}   missing, expected {expected}")
        elif entry.shape != expected.shape and not (other_rows and _rows_differ(entry, expected)):
            lines.append(f"{what}   expected {expected}, found {entry}")
        elif entry.dtype != expected.dtype and not (
            entry.dtype in MERGEABLE_DTYPES and (any_dtype or expert.is_task_vector)
        ):
            lines.append(f"{what}   expected dtype {expected.dtype}, found {entry.dtype}")
    return lines


def _rows_differ(entry: TensorEntry, expected: TensorEntry) -> bool:
    """Whether two shapes are of one kind of rows, and of different numbers of them."""
    one, other = entry.shape, expected.shape
    return bool(one and other) and one != other and one[1:] == other[1:]


@dataclass(frozen=True)
class _Vocabulary:
    """Tensors of which models have different numbers of rows."""

    names: frozenset[str]
    rows: int  # in the base
    fewest: int  # in any of the models


def _vocabulary(
    merged: Sequence[TensorSpec], encoder: Mapping[str, TensorEntry], experts: Sequence[Expert]
) -> _Vocabulary | None:
    """The tensors that differ in rows, if they can be a vocabulary's and nothing else differs.

    They can if all of them have the same number of rows within each model, and one of them is
    a matrix.
    """
    names, rows, fewest = set(), set(), set()
    for expert in experts:
        own = set()
        for spec in merged:
            entry, expected = expert.checkpoint.entries.get(spec.name), encoder[spec.name]
            if entry is not None and entry.shape != expected.shape:
                if not _rows_differ(entry, expected):
                    return None
                names.add(spec.name)
                rows.add(expected.shape[0])
                own.add(entry.shape[0])
        if len(own) > 1:
            return None
        fewest |= own
    if len(rows) != 1 or not any(len(encoder[name].shape) == 2 for name in names):
        return None
    return _Vocabulary(frozenset(names), min(rows), min(rows | fewest))


def _cut(spec: TensorSpec, vocabulary: _Vocabulary) -> TensorSpec:
    """A tensor of the vocabulary with as many rows as all models have."""
    if spec.name not in vocabulary.names:
        return spec
    return TensorSpec(spec.name, spec.dtype, (vocabulary.fewest, *spec.shape[1:]))


def _prefix_hint(missing: Set[str], unknown: Set[str]) -> str | None:
    """What to say where the same tensors go by names with a prefix here and without one there."""
    for short, long, whose in ((missing, unknown, "an expert"), (unknown, missing, "the base")):
        split = (key.partition(".") for key in long)
        shared = Counter(first + dot for first, dot, rest in split if dot and rest in short)
        for prefix, count in sorted(shared.items()):
            if 2 * count > len(short):
                return (
                    f"{whose} names the same tensors with '{shown(prefix)}' before them: save "
                    "base and experts with the same model class"
                )
    return None


def _hint(details: Sequence[str], vocabulary: _Vocabulary | None) -> str:
    if vocabulary is not None and all("expected dtype" not in line for line in details):
        return (
            "the experts have more or fewer words than the base: --vocab base takes the base's "
            f"{vocabulary.rows} rows, --vocab min the {vocabulary.fewest} that all have"
        )
    if all("expected dtype" in line for line in details):
        return "to merge different types deliberately, say the type of the result with --dtype"
    return (
        "heads differ between tasks: name them with --heads GLOB (or say what model this is "
        "with --config), or leave tensors unmerged with --exclude GLOB"
    )
