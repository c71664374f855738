"""The inputs of a merge, opened: a base, and experts told apart from their heads."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.description import Description, describe
from momacli.checkpoint.naming import Named
from momacli.checkpoint.plan import Expert, check_patterns, expert_from, task_vector_recipe
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ConflictError, UsageError
from momacli.models.layout import head_names


@dataclass(frozen=True)
class Inputs:
    """A base and its experts; they need not fit each other yet."""

    base: Checkpoint
    base_heads: tuple[str, ...]  # tensors of a head of the base's own
    experts: tuple[Expert, ...]
    descriptions: Mapping[str, Description | None]  # by task

    @property
    def paths(self) -> list[Path]:
        """Where all of them lie."""
        return [self.base.path, *(expert.checkpoint.path for expert in self.experts)]

    @property
    def configs(self) -> dict[str, Mapping[str, object]]:
        """The config.json of every task that has one."""
        return {task: item.config for task, item in self.descriptions.items() if item}


def open_inputs(
    stack: ExitStack,
    base: Named,
    named: Sequence[Named],
    *,
    heads: Sequence[str] = (),
    config: Path | None = None,
) -> Inputs:
    """Open base and experts; the stack will close them.

    heads: glob patterns of head tensors, where the architecture does not tell.
    config: a config.json for all of them, where none is with the weights.

    Raises CheckpointError, ConflictError if the base is a task vector, and UsageError if there
    is no expert or a pattern matches nothing.
    """
    if not named:
        raise UsageError("no expert was given, only a base")
    opened = stack.enter_context(Checkpoint.open(base.path, name=base.name))
    if task_vector_recipe(opened):
        raise ConflictError(
            f"the base {base.path} is a task vector",
            hint="give the model that it was taken from with --base",
        )
    own = describe(opened, config)
    experts: list[Expert] = []
    descriptions: dict[str, Description | None] = {}
    for item in named:
        checkpoint = stack.enter_context(Checkpoint.open(item.path, name=item.name))
        found = describe(checkpoint, config)
        names = head_names(found.config if found else None, checkpoint.entries, heads)
        expert = expert_from(checkpoint, names)
        if expert.vector_of and config is None:
            found = _description_of_task_vector(expert, own)
        experts.append(expert)
        descriptions[item.name] = found
    check_patterns("--heads", heads, [opened, *(expert.checkpoint for expert in experts)])
    base_heads = head_names(own.config if own else None, opened.entries, heads)
    return Inputs(opened, tuple(base_heads), tuple(experts), descriptions)


def _description_of_task_vector(expert: Expert, base: Description | None) -> Description | None:
    """A task vector carries its config.json; the files that prepare inputs are the base's."""
    assert expert.vector_of is not None
    config = expert.vector_of.configs.get(expert.vector_of.tasks[0])
    return None if config is None else Description(config, base.folder if base else None)
