"""The file of an alignment, which lies in an output's folder or beside an output file."""

from pathlib import Path

from momacli.alignment.catalog import ADDING
from momacli.checkpoint.provenance import Recipe

ALIGNMENT = "alignment.safetensors"
"""The alignment's file in an output folder; an output file has NAME.alignment.safetensors."""

ADAPTER = "surgery.safetensors"
"""The same of a method that adds parameters, which the file then holds."""


def has_adapters(recipe: Recipe | None) -> bool:
    """Whether a model was written with adapters, without which it is a mere merge."""
    if recipe is None or recipe.command != "align":
        return False
    return recipe.parameters.get("method") in ADDING


def file_beside(output: Path, name: str) -> Path:
    """Where a file that belongs to an output is, whether it is there or not."""
    return output / name if output.is_dir() else output.with_name(f"{output.stem}.{name}")


def adapter_file(output: Path) -> Path:
    """Where the adapters of an output are; of a single task's folder, in the folder around it."""
    own = file_beside(output, ADAPTER)
    around = output / ".." / ADAPTER
    return around if output.is_dir() and around.is_file() and not own.is_file() else own
