"""The layout is read out of the imports, so that it stays what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import momacli

ROOT = Path(momacli.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
GROUND = {"errors", "progress", "shapes", "signals"}

HOMES = {
    "transformers": {"models"},
    "open_clip": {"models"},
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"figures"},
}
"""Libraries that only one folder knows."""


def imported(file: Path) -> Iterator[str]:
    """Yield every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "momacli" or node.module.startswith("momacli."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int:
    """How high a module stands: the ground 0, nouns 1, verbs 2, the command line 3."""
    parts = module.split(".")[1:]
    if not parts or parts[0] in GROUND or parts[0].startswith("__version"):
        return 0
    if parts[0] in ("cli", "__main__"):
        return 3
    return 1 if (ROOT / parts[0]).is_dir() else 2


def module_of(file: Path) -> str:
    return ".".join(("momacli", *file.with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_from_the_command_line_to_verbs_to_nouns_to_errors(file: Path):
    own = layer(module_of(file))

    upward = [name for name in imported(file) if name.startswith("momacli") and layer(name) > own]

    assert upward == []


@pytest.mark.parametrize("file", FILES, ids=str)
def test_each_large_library_is_known_to_one_folder_only(file: Path):
    strangers = [
        name
        for name in imported(file)
        if file.parts[0] not in HOMES.get(name.split(".")[0], {file.parts[0]})
    ]

    assert strangers == []


@pytest.mark.parametrize("file", [f for f in FILES if f.parts[0] != "cli"], ids=str)
def test_the_library_is_silent(file: Path):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))

    calls = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write")
    ]

    assert calls == []


def test_every_merge_method_has_a_test_file_of_its_own():
    methods = {file.stem for file in FILES if file.parent == Path("methods")}
    methods = {stem for stem in methods if not stem.startswith("_")}
    tested = {file.stem.removeprefix("test_") for file in Path(__file__).parent.glob("methods/*")}

    assert methods - tested == set()


def test_shape_annotations_are_checked_while_tests_run():
    import torch
    from jaxtyping import TypeCheckError

    from momacli.methods.average import average

    with pytest.raises(TypeCheckError):
        average(torch.ones(2, 3), weights=torch.ones(3))
