"""The README's commands, code and tables are held against the program itself."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CLASSES

from momacli.alignment import catalog as aligning
from momacli.cli.commands import app
from momacli.cli.main import run
from momacli.merging.catalog import find_method, method_names

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ moma ") for line in lines if line.startswith("$ moma ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory, vit_folders, vit_files, vit_images):
    """A folder with everything the README speaks of."""
    root = tmp_path_factory.mktemp("readme")
    shutil.copytree(vit_folders, root / "experts")
    shutil.move(root / "experts" / "base", root / "base")
    shutil.copytree(vit_files, root / "ckpts")
    shutil.copy(root / "base" / "preprocessor_config.json", root / "ckpts")
    shutil.copytree(vit_images / "unlabeled", root / "unlabeled")
    shutil.copytree(vit_images / "labeled", root / "labeled")
    (root / "legacy").mkdir()
    torch.save(load_file(root / "ckpts" / "birds.safetensors"), root / "legacy" / "birds.pt")
    (recipe,) = blocks("toml")
    (root / "recipe.toml").write_text(recipe, encoding="utf-8")
    return root


def arguments(line: str, place: Path, capfd) -> list[str]:
    """The words of a command line as a shell makes them: `$(...)` run, globs expanded."""

    def output_of(match: re.Match[str]) -> str:
        capfd.readouterr()
        assert run(arguments(match.group(1), place, capfd)) == 0
        return capfd.readouterr().out.strip()

    line = re.sub(r'"\$\(moma (.*?)\)"', output_of, line)
    words = []
    for word in shlex.split(line):
        found = sorted(str(path.relative_to(place)) for path in place.glob(word) if "*" in word)
        words += found or [word]
    return words


def test_every_command_runs_as_written_in_the_order_of_the_text(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    shown = commands()

    for line in shown:
        status = run(arguments(line, place, capfd))
        assert status == 0, f"moma {line}\n{capfd.readouterr().err}"

    assert len(shown) >= 10
    assert all((place / "aligned" / task / "config.json").is_file() for task in CLASSES)
    assert (place / "aligned.safetensors").is_file()


def test_the_python_example_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))

    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})

    assert "cats" in capsys.readouterr().out


def test_every_command_has_a_row():
    rows = re.findall(r"^\| `moma ([a-z-]+)` \|", README, re.MULTILINE)

    assert sorted(rows) == sorted(str(command.name) for command in app.registered_commands)


def test_every_method_has_a_row_with_its_source():
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|$", README, re.MULTILINE))
    on_samples = re.findall(r"^\| `([a-z+-]+)` \| (\d+) \| ([^|]*) \|$", README, re.MULTILINE)
    rows |= {name: source for name, added, source in on_samples if added == "0"}

    assert sorted(rows) == method_names()
    for name, source in rows.items():
        assert source == find_method(name).source


def test_every_method_of_align_has_a_row_with_what_it_adds():
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| ([^|]+) \| [\d.]+ \| ([^|]*) \|$", README, re.MULTILINE
    )
    cards = aligning.method_cards()

    assert [(name, source) for name, _, source in rows] == [
        (card.name, card.title) for card in cards
    ]
    assert {name for name, added, _ in rows if added != "0"} == aligning.ADDING


def test_every_folder_of_the_package_stands_in_the_tree():
    (tree,) = (block for block in blocks("text") if block.startswith("momacli/"))
    package = Path(__file__).parent.parent / "momacli"
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}

    assert {f"{name}/" for name in folders} <= set(tree.split())


def test_the_two_lines_of_set_up_are_there():
    shown = [line for block in blocks("console") for line in block.splitlines()]

    assert "pip install . && moma demo" in shown
    assert "pip install '.[test]' && pytest" in shown
