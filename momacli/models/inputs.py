"""The inputs of a merge, opened: a base, and experts told apart from their heads."""

from collections.abc import Collection, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from momacli.adapters.checkpoint import AdaptedCheckpoint, with_adapter
from momacli.checkpoint.arrays import parse_dtype
from momacli.checkpoint.description import Description, describe
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.head_files import with_head_file
from momacli.checkpoint.naming import Named
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.plan import (
    Expert,
    MergePlan,
    Vocab,
    check_patterns,
    expert_from,
    plan_merge,
    task_vector_recipe,
)
from momacli.checkpoint.reader import Checkpoint, is_adapter
from momacli.checkpoint.renaming import RenamedCheckpoint, under_names_of
from momacli.errors import ConflictError, ModelError, UsageError
from momacli.models.layout import (
    head_names,
    is_classifier,
    is_encoder,
    is_vision_tower,
    linear_beside,
    other_parts,
    sized_config,
)
from momacli.models.vision_tower import PROJECTION, clip_expert
from momacli.progress import Listener, Notice, ignore
from momacli.recipes.computed import ComputedCheckpoint, MergedCheckpoint, files_of


@dataclass(frozen=True)
class Inputs:
    """A base and its experts; they need not fit each other yet."""

    base: Checkpoint
    base_heads: tuple[str, ...]  # tensors of a head of the base's own
    experts: tuple[Expert, ...]
    descriptions: Mapping[str, Description | None]  # by task
    base_description: Description | None = None

    @property
    def paths(self) -> list[Path]:
        """Where all of them lie on disk."""
        checkpoints = (self.base, *(expert.checkpoint for expert in self.experts))
        return [file.path for item in checkpoints for file in files_of(item)]

    @property
    def tasks(self) -> tuple[Expert, ...]:
        """The experts on disk, also of merges whose result is an input: theirs are the heads.

        Raises ConflictError where two have the same name.
        """
        found: dict[str, Expert] = {}
        bases = self.base.tasks if isinstance(self.base, MergedCheckpoint) else ()
        for expert in (*self.experts, *bases):
            checkpoint = expert.checkpoint
            inner = checkpoint.tasks if isinstance(checkpoint, MergedCheckpoint) else (expert,)
            for own in inner:
                other = found.setdefault(own.name, own).checkpoint
                if other is not own.checkpoint:
                    raise ConflictError(
                        f"two experts are named {own.name}: {other.path} and {own.checkpoint.path}",
                        hint="give each a name of its own with NAME=PATH",
                    )
        return tuple(found.values())

    @property
    def configs(self) -> dict[str, Mapping[str, object]]:
        """The config.json of every task that has one."""
        return {task: item.config for task, item in self.descriptions.items() if item}

    def plan(
        self,
        exclude: Sequence[str],
        dtype: str | None,
        *,
        tolerated: Tolerated | None = None,
        vocab: Vocab | None = None,
    ) -> MergePlan:
        """Match experts and base as `plan_merge` does; also refuses patterns that match nothing.

        dtype: the name of a type, such as "bfloat16".
        """
        checkpoints = [self.base, *(expert.checkpoint for expert in self.experts)]
        check_patterns("--exclude", exclude, checkpoints)
        return plan_merge(
            self.base,
            self.experts,
            base_heads=self.base_heads,
            exclude=exclude,
            dtype=parse_dtype(dtype) if dtype else None,
            tolerated=tolerated,
            vocab=vocab,
        )


def open_inputs(
    stack: ExitStack,
    base: Named,
    named: Sequence[Named],
    *,
    heads: Sequence[str] | None = (),
    config: Path | None = None,
    listener: Listener = ignore,
) -> Inputs:
    """Open base and experts; the stack will close them.

    Names that differ by one prefix are brought to those of the experts, and the listener is
    told. Of a base with the head of another purpose, only what the experts have too is used.

    heads: glob patterns of head tensors, where the architecture does not tell; None where
        nothing is to be taken for a head.
    config: a config.json for all of them, where none is with the weights.

    Raises CheckpointError, ConflictError if the base is a task vector, and UsageError if there
    is no expert or a pattern matches nothing.
    """
    if not named:
        raise UsageError("no expert was given, only a base")
    opened = _open(stack, base)
    if task_vector_recipe(opened):
        raise ConflictError(
            f"the base {base.path} is a task vector",
            hint="give the model that it was taken from with --base",
        )
    own = _description(opened, config)
    experts: list[Expert] = []
    descriptions: dict[str, Description | None] = {}
    checkpoints = _adapted(opened, own, [_open(stack, item) for item in named], listener)
    for item, checkpoint in zip(named, checkpoints, strict=True):
        found = _description(checkpoint, config)
        if PROJECTION in opened.entries and not isinstance(opened, ComputedCheckpoint):
            checkpoint = _under_names_of(checkpoint, opened.entries, listener)
            lender = stack.enter_context(Checkpoint.open(base.path))
            checkpoint, found = clip_expert(checkpoint, lender, found)
        elif experts:
            wanted = experts[0].checkpoint.entries
            checkpoint = _under_names_of(checkpoint, wanted, listener)
        names = _head_names(found, checkpoint, heads)
        if not names and heads is not None:
            names = _linear_beside(found, checkpoint, opened)
        expert = expert_from(checkpoint, names)
        if expert.vector_of and config is None:
            found = _description_of_task_vector(expert, own)
        experts.append(expert)
        if isinstance(checkpoint, MergedCheckpoint):
            descriptions |= checkpoint.descriptions
        else:
            descriptions[item.name] = _fitted(found, expert)
    check_patterns("--heads", heads or (), [opened, *(expert.checkpoint for expert in experts)])
    if isinstance(opened, MergedCheckpoint):
        descriptions |= opened.descriptions
    encoders = [set(one.checkpoint.entries) - set(one.heads.values()) for one in experts]
    opened = _under_names_of(opened, set().union(*encoders), listener)
    base_heads = _head_names(own, opened, heads)
    with_heads = any(expert.heads for expert in experts)
    if all(found and _has_known_parts(found.config, with_heads) for found in descriptions.values()):
        base_heads += other_parts(opened.entries, set().union(*encoders, base_heads))
    return Inputs(opened, tuple(base_heads), tuple(experts), descriptions, own)


def _open(stack: ExitStack, item: Named) -> Checkpoint:
    if item.opened is not None:
        return item.opened
    model = stack.enter_context(Checkpoint.open(item.path, name=item.name))
    return stack.enter_context(with_head_file(model))


def _linear_beside(
    found: Description | None, checkpoint: Checkpoint, base: Checkpoint
) -> list[str]:
    """The head of an encoder that has none by its class: what it has and the base lacks."""
    if found is None or not is_encoder(found.config) or isinstance(checkpoint, ComputedCheckpoint):
        return []
    encoder = under_names_of(base, checkpoint.entries).entries
    return linear_beside(checkpoint.entries, encoder)


_FACTORS = (".lora_A.weight", ".lora_embedding_A", ".oft_R.weight")
"""What the names of an adapter's tensors end in."""


def _adapted(
    base: Checkpoint,
    description: Description | None,
    checkpoints: Sequence[Checkpoint],
    listener: Listener,
) -> list[Checkpoint]:
    """The experts, adapters put in their base. Raises ConflictError with all that fits nowhere."""
    if is_adapter(base):
        raise ConflictError(
            f"the base {base.path} is an adapter",
            hint="give the model that it was trained on with --base, and the adapter as an expert",
        )
    found: list[Checkpoint] = []
    refused: list[ConflictError] = []
    for checkpoint in checkpoints:
        if not is_adapter(checkpoint):
            if any(key.endswith(_FACTORS) for key in checkpoint.entries):
                raise ConflictError(
                    f"{shown_path(checkpoint.path)} holds the tensors of an adapter without its "
                    "adapter_config.json",
                    hint="give the adapter's folder, with both files in it",
                )
            found.append(checkpoint)
            continue
        try:
            adapted = with_adapter(base, checkpoint, description, _tensors_of, stored_as)
        except ConflictError as error:
            refused.append(error)
            continue
        trained_on = adapted.config.base_name
        said = f", which says it was trained on {shown(trained_on)}" if trained_on else ""
        listener(Notice(f"{shown_path(checkpoint.path)}: {adapted.config}{said}"))
        found.append(adapted)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        raise ConflictError(
            f"{len(refused)} adapters do not fit the base {base.path}",
            details=[line for error in refused for line in error.details],
            hint=refused[0].hint,
        )
    return found


def _tensors_of(config: Mapping[str, object], known: Collection[str]) -> Set[str]:
    """The names of a classifier's tensors; torch and transformers are only needed for this."""
    from momacli.models.classification import tensor_names

    return tensor_names(config, known)


def stored_as(config: Mapping[str, object]) -> Mapping[str, str]:
    """How files call the tensors of a built model; one that is not known is as it is."""
    from momacli.models.classification import stored_names

    try:
        return stored_names(config)
    except ModelError:
        return {}


def _has_known_parts(config: Mapping[str, object], with_heads: bool) -> bool:
    known = is_classifier(config) or is_vision_tower(config)
    return known or (with_heads and is_encoder(config))


def _under_names_of(
    checkpoint: Checkpoint, wanted: Collection[str], listener: Listener
) -> Checkpoint:
    if isinstance(checkpoint, ComputedCheckpoint):
        return checkpoint
    renamed = under_names_of(checkpoint, wanted)
    if isinstance(renamed, RenamedCheckpoint):
        listener(Notice(f"{checkpoint.path}: {renamed.change}"))
    return renamed


def _description(checkpoint: Checkpoint, config: Path | None) -> Description | None:
    if isinstance(checkpoint, ComputedCheckpoint):
        return checkpoint.description
    return describe(checkpoint, config)


def _head_names(
    description: Description | None, checkpoint: Checkpoint, heads: Sequence[str] | None
) -> list[str]:
    """Names of the head's tensors; the result of a merge has none, its experts have."""
    if heads is None or isinstance(checkpoint, MergedCheckpoint):
        return []
    names = head_names(description.config if description else None, checkpoint.entries, heads)
    if isinstance(checkpoint, AdaptedCheckpoint) and not names:
        return list(checkpoint.layout.own)  # what it saved that the base has no place for
    return names


def _fitted(found: Description | None, expert: Expert) -> Description | None:
    """The description with the number of classes that this expert's head has."""
    if found is None or not expert.heads:
        return found
    entries = expert.checkpoint.entries
    heads = {own: entries[key] for own, key in expert.heads.items()}
    return replace(found, config=sized_config(found.config, heads, list(heads)))


def _description_of_task_vector(expert: Expert, base: Description | None) -> Description | None:
    """A task vector carries its config.json; the files that prepare inputs are the base's."""
    assert expert.vector_of is not None
    config = expert.vector_of.configs.get(expert.vector_of.tasks[0])
    return None if config is None else Description(config, base.folder if base else None)
