import shutil
from pathlib import Path

import pytest

from momacli.cli.main import run


@pytest.fixture
def ckpts(vit_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a new folder with checkpoints in `ckpts` and a recipe beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vit_files, "ckpts")
    Path("recipe.toml").write_text(
        """
        method = "ties"
        base = "ckpts/base.safetensors"
        inputs = ["ckpts/cats.safetensors", "ckpts/dogs.safetensors"]
        output = "both.safetensors"
        """
    )
    return Path("ckpts")


def test_config_takes_a_recipe_and_like_repeats_what_it_wrote(ckpts, capfd):
    assert run(["merge", "--config", "recipe.toml"]) == 0
    assert capfd.readouterr().out == "both.safetensors\n"
    assert run(["merge", "--recipe", "recipe.toml", "-o", "other.safetensors"]) == 0
    assert run(["merge", "--like", "both.safetensors", "-o", "again.safetensors"]) == 0
    assert capfd.readouterr().out == "other.safetensors\nagain.safetensors\n"

    first, other, again = (Path(f"{n}.safetensors") for n in ("both", "other", "again"))
    assert first.read_bytes() == other.read_bytes() == again.read_bytes()


def test_the_plan_of_a_recipe_is_shown_without_writing(ckpts, capfd):
    assert run(["merge", "--config", "recipe.toml", "--dry-run"]) == 0

    assert capfd.readouterr().out.startswith("would merge 2 experts by ties")
    assert not Path("both.safetensors").exists()


def test_config_still_takes_the_config_json_of_the_models(ckpts, capfd):
    arguments = ["merge", *map(str, ckpts.glob("*.safetensors")), "-o", "models"]
    config = shutil.move(ckpts / "config.json", "what.json")

    assert run([*arguments, "--config", config]) == 0

    assert Path("models/cats/config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ties"], "--method cannot be given beside it"),
        (["x.safetensors", "--lambda", "1"], "checkpoints, --lambda cannot be given beside it"),
        (["--like", "both.safetensors"], "--config cannot be given beside it"),
    ],
)
def test_what_a_recipe_says_is_not_said_twice(ckpts, capfd, arguments, message):
    assert run(["merge", "--config", "recipe.toml", *arguments]) == 2

    assert message in capfd.readouterr().err


def test_nothing_to_merge_is_a_usage_error(ckpts, capfd):
    assert run(["merge"]) == 2
    assert "no checkpoint was given" in capfd.readouterr().err
    assert run(["merge", "--config", "recipe.txt"]) == 2
    assert "--config recipe.toml" in capfd.readouterr().err
