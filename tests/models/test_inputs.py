"""Bases as they are published: without the prefix of a classifier, with heads of their own."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.models.layout import other_parts
from momacli.progress import Notice


@pytest.fixture
def bare_base(vit_folders, tmp_path, monkeypatch) -> Path:
    """The base as ViTModel saves it: no `vit.` before the names, and a pooler."""
    monkeypatch.chdir(tmp_path)
    tensors = {
        key.removeprefix("vit."): value
        for key, value in load_file(vit_folders / "base" / "model.safetensors").items()
    }
    tensors |= {"pooler.dense.weight": torch.zeros(16, 16), "pooler.dense.bias": torch.zeros(16)}
    save_file(tensors, tmp_path / "base.safetensors", metadata={"format": "pt"})
    return tmp_path / "base.safetensors"


def test_a_base_without_prefix_is_merged_aligned_and_absorbed(bare_base, vit_folders, vit_images):
    notices = []
    tasks = [vit_folders / task for task in CLASSES]
    report = merge(tasks, base=bare_base, output="merged", listener=notices.append)
    merge(tasks, base=vit_folders / "base", output="same")
    settings = Settings(steps=3, batch_size=4)
    align(data=vit_images / "unlabeled", settings=settings, cache="cache")
    absorb("merged", "aligned/alignment.safetensors", output="again")

    told = [event.text for event in notices if isinstance(event, Notice)]
    shard = "cats/model-00001-of-00002.safetensors"
    assert any("'vit.' is put before the names of" in text for text in told)
    assert set(report.base_head) == {"pooler.dense.weight", "pooler.dense.bias"}
    expected, found = load_file(f"same/{shard}"), load_file(f"merged/{shard}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert Path(f"again/{shard}").read_bytes() == Path(f"aligned/{shard}").read_bytes()
    _, info = transformers.AutoModelForImageClassification.from_pretrained(
        "aligned/cats", output_loading_info=True
    )
    assert not any(info.values())


def test_a_layer_that_experts_lack_within_the_encoder_is_a_conflict(bare_base, vit_folders):
    tensors = load_file(bare_base)
    save_file(tensors | {"encoder.layer.9.extra.weight": torch.zeros(2)}, "larger.safetensors")

    with pytest.raises(ConflictError) as caught:
        merge([vit_folders / "cats", vit_folders / "dogs"], base="larger.safetensors")
    assert any("layer.9.extra.weight" in line for line in caught.value.details)


def test_other_parts_are_whole_branches_that_no_expert_has():
    known = ["bert.encoder.0.weight", "bert.embeddings.word.weight"]
    names = [*known, "bert.pooler.dense.weight", "cls.bias", "bert.encoder.1.weight"]

    assert other_parts(names, known) == ["bert.pooler.dense.weight", "cls.bias"]
