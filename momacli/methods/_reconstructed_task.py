"""Which expert a method reconstructs that returns one per expert instead of a merge of all."""

from momacli.errors import UsageError


def checked_task(task: int | None, count: int) -> int:
    """Return the index of the expert to reconstruct. Raises UsageError if it is none of them."""
    if task is None or not 0 <= task < count:
        found = "none was given" if task is None else f"found {task}"
        raise UsageError(
            f"task: expected the index of one of {count} experts, {found}",
            hint=f"experts count from 0 in the order of their names: 0 to {count - 1}",
        )
    return task
