"""The README.md of outputs."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_models import CLASSES

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.checkpoint.card import card, is_card, license_of
from momacli.checkpoint.provenance import Input, Recipe
from momacli.cli.main import run
from momacli.errors import OutputError
from momacli.merge import merge
from momacli.verify import verify

DIGEST = "ab" * 32


@pytest.fixture
def place(vit_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `base/` and `experts/`, none of which states a licence."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vit_folders, "experts")
    shutil.move("experts/base", "base")
    return tmp_path


def state(folder: str | Path, license_name: str) -> None:
    Path(folder, "README.md").write_text(f"---\nlicense: {license_name}\n---\n# mine\n")


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def merged(*options: str, output: str = "merged") -> str:
    experts = [f"experts/{task}" for task in CLASSES]
    assert run(["merge", *experts, "--base", "base", "-o", output, *options]) == 0
    return Path(output, "cats", "README.md").read_text()


def test_a_card_says_what_the_model_is_of_with_digests_and_settings(place):
    text = merged("--method", "ties", "--density", "0.3")

    assert front(text) == {
        "library_name": "transformers",
        "base_model": ["base", *CLASSES],
        "base_model_relation": "merge",
        "tags": ["merge", "moma"],
    }
    assert "# cats" in text.splitlines()
    assert "a merge of 3 experts by `ties`" in text
    assert len(re.findall(r"`[0-9a-f]{64}`", text)) == 4
    assert "0" * 64 not in text
    assert "| density | `0.3` |" in text
    assert str(place) not in text


def test_the_command_of_a_card_makes_the_same_bytes(place):
    text = merged(
        "--method", "ties", "--lambda", "0.7", "--weights", "cats=2", "--exclude", "*norm*"
    )
    before = {p: p.read_bytes() for p in Path("merged").rglob("*") if p.is_file()}
    (command,) = re.findall(r"^\$ moma (.*)$", text, re.MULTILINE)

    words = [word.strip("'") for word in command.split()]
    assert run([*words, "-o", "merged"]) == 0

    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_licence_that_all_inputs_state_is_that_of_the_output(place):
    for folder in ("base", *(f"experts/{task}" for task in CLASSES)):
        state(folder, "apache-2.0")

    text = merged()

    assert front(text)["license"] == "apache-2.0"
    assert "Licences" not in text
    assert Path("base/README.md").read_text().endswith("# mine\n")


def test_licences_that_differ_are_all_listed(place):
    state("base", "apache-2.0")
    state("experts/cats", "cc-by-nc-4.0")

    text = merged()

    assert front(text)["license"] == "other"
    for line in ("| `base` | apache-2.0 |", "| `cats` | cc-by-nc-4.0 |", "| `dogs` | not stated |"):
        assert line in text


@pytest.mark.parametrize(
    "text",
    [
        "no front matter",
        "---\n[broken\n---\n",
        "---\nlicense: [mit, gpl]\n---\n",
        "---\nlicense: '<script>'\n---\n",
        "---\na: &a [x]\nlicense: mit\nb: [*a, *a]\n---\n",
        "---\n- license\n---\n",
    ],
)
def test_a_licence_that_is_none_is_not_stated(tmp_path, text):
    (tmp_path / "README.md").write_text(text)

    assert license_of(tmp_path) is None


def test_an_aligned_model_has_a_card_with_what_was_measured(place, vit_images):
    merged()
    align("merged", data=vit_images / "unlabeled", settings=Settings(steps=2), cache="cache")

    text = Path("aligned/cats/README.md").read_text()

    assert "the aligned merge of 3 experts by `task-arithmetic`" in text
    assert "| samples | 40 |" in text
    assert "cosine to the fine-tuned features, after" in text
    assert "moma align merged --data UNLABELED" in text
    assert verify("aligned").equal


def test_a_card_is_written_anew_until_someone_changes_it(place):
    merged()
    merged("--method", "average")
    assert is_card(Path("merged/cats/README.md"))
    assert verify("merged").equal

    file = Path("merged/cats/README.md")
    file.write_text(file.read_text().replace("merge of 3", "fine merge of 3"))

    assert not is_card(file)
    with pytest.raises(OutputError, match="moma did not write it"):
        merge([f"experts/{task}" for task in CLASSES], base="base", output="merged")


def test_names_of_strangers_cannot_break_out_of_a_card(tmp_path):
    name = 'x"]\n---\n<script>|`'
    recipe = Recipe("merge", {"method": "ties`|<b>"}, Input(name, "a b'c", {"f|`": DIGEST}))

    text = card(name, recipe, tmp_path / "out")

    assert front(text)["base_model"] == ['x"  n--- n script']
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert "'a b'\\''c'" in text


def test_a_merge_of_steps_or_rules_points_to_its_record(place):
    recipe = Path("recipe.toml")
    recipe.write_text(
        'base = "base"\ninputs = ["experts/cats", "experts/dogs"]\noutput = "out"\n'
        '[[rules]]\ntensors = "*norm*"\nlambda = 0.1\n'
    )
    assert run(["merge", "--config", "recipe.toml"]) == 0

    text = Path("out/dogs/README.md").read_text()
    assert "$ moma merge" not in text
    assert "moma verify" in text
