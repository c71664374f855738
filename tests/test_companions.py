"""What lies beside the weights of a model comes along wherever a model is written."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import CLASSES

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.errors import CheckpointError
from momacli.merge import merge


@pytest.mark.parametrize("made_by", ["merge", "align", "absorb", "a merge of one task"])
def test_processor_tokenizer_and_class_names_are_the_expert_s(
    vit_folders, vit_images, tmp_path, monkeypatch, made_by
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vit_folders, "models")
    own = {"vocab.txt": "a\nb\n", "tokenizer.json": "{}", "chat_template.jinja": "{{ x }}"}
    for task in CLASSES:
        for name, text in own.items():
            Path("models", task, name).write_text(text + f"\n{task}")
    experts = [f"models/{task}" for task in CLASSES]

    if made_by == "a merge of one task":
        merge(experts, base="models/base", method="emr", output="out")
    else:
        merge(experts, base="models/base", output="out" if made_by == "merge" else "merged")
    if made_by in ("align", "absorb"):
        steps = Settings(steps=1)
        align("merged", data=vit_images / "unlabeled", settings=steps, output="out", cache="cache")
    if made_by == "absorb":
        shutil.move("out", "aligned")
        absorb("merged", "aligned/alignment.safetensors", output="out")

    for task, classes in CLASSES.items():
        for name in ("preprocessor_config.json", *own):
            assert Path("out", task, name).read_bytes() == Path("models", task, name).read_bytes()
        config = json.loads(Path("out", task, "config.json").read_text())
        assert config["id2label"] == {str(n): label for n, label in enumerate(classes)}
        assert config["label2id"] == {label: n for n, label in enumerate(classes)}
        assert "# " + task in Path("out", task, "README.md").read_text()


def test_a_link_to_a_file_that_is_not_the_model_s_is_refused_and_copied_nowhere(
    vit_folders, tmp_path
):
    shutil.copytree(vit_folders, tmp_path / "repo" / "models")
    (tmp_path / "secret").write_text("password")
    link = tmp_path / "repo" / "models" / "cats" / "tokenizer_config.json"
    link.symlink_to("../../../secret")

    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is a link that leads far"):
        merge(sorted((tmp_path / "repo" / "models").iterdir()), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_of_a_hub_s_cache_and_to_a_neighbour_are_followed(vit_folders, tmp_path):
    shutil.copytree(vit_folders, tmp_path / "hub" / "snapshots")
    for task in CLASSES:
        blob = tmp_path / "hub" / "blobs" / task
        blob.parent.mkdir(exist_ok=True)
        blob.write_text("{}")
        folder = tmp_path / "hub" / "snapshots" / task
        (folder / "tokenizer_config.json").symlink_to(f"../../blobs/{task}")
        (folder / "added_tokens.json").symlink_to("../base/config.json")

    merge(sorted((tmp_path / "hub" / "snapshots").iterdir()), output=tmp_path / "out")

    assert (tmp_path / "out" / "cats" / "tokenizer_config.json").read_text() == "{}"
    assert (tmp_path / "out" / "cats" / "added_tokens.json").is_file()
