import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_text import save_tokenizer

from momacli.errors import DataError, ModelError, UsageError
from momacli.head import head
from momacli.models.factory import quiet
from momacli.models.templates import TEMPLATES

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
CLASSES = ["w3", "w4 w5"]


@pytest.fixture(params=["CLIP", "Siglip"])
def model(request, tmp_path, monkeypatch):
    """A tiny full model, saved in model/ with a tokenizer of whole words."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 16, "eos_token_id": 1}
    text |= {"bos_token_id": 2, "pad_token_id": 0, "projection_dim": 12, "projection_size": 16}
    vision = SIZES | {"image_size": 8, "patch_size": 4, "projection_dim": 12}
    config = getattr(transformers, f"{request.param}Config")(
        text_config=text, vision_config=vision, projection_dim=12
    )
    built = getattr(transformers, f"{request.param}Model")(config)
    with quiet():
        built.save_pretrained("model")
    save_tokenizer(Path("model"))
    return built.eval()


def test_rows_are_the_normalised_means_of_normalised_sentences_times_the_scale(model):
    templates = ["w1 {} .", "w2 w3 {} w9"]
    report = head("model", classes=CLASSES, templates=templates, output="head_x.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    siglip = hasattr(model, "logit_bias")
    written = load_file("head_x.safetensors")

    for row, name in zip(written["weight"], CLASSES, strict=True):
        directions = []
        for template in templates:
            padding = {"padding": "max_length", "max_length": 16} if siglip else {}
            tokens = tokenizer(template.replace("{}", name), return_tensors="pt", **padding)
            with torch.no_grad():
                z = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output[0]
            directions.append(z / z.norm())
        mean = sum(directions) / 2
        expected = model.logit_scale.exp().clamp(max=100) * mean / mean.norm()
        torch.testing.assert_close(row, expected.detach(), atol=1e-4, rtol=1e-4)
    assert ("bias" in written) == siglip
    assert report.width == written["weight"].shape[1]
    with safe_open("head_x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == CLASSES


def test_classes_and_templates_come_from_files_or_ready_sets(model):
    Path("classes.txt").write_text("w3\nw4 w5\n")
    report = head("model", classes="classes.txt", templates="EuroSAT", output="head.safetensors")

    assert report.classes == tuple(CLASSES)
    assert report.templates == TEMPLATES["eurosat"]


def test_what_makes_no_head_is_refused(model):
    with pytest.raises(UsageError):
        head("model", classes=CLASSES, templates=["no place"], output="head.safetensors")
    with pytest.raises(DataError):
        head("model", classes="missing.txt", output="head.safetensors")
    with quiet():
        model.vision_model.save_pretrained("tower")
    with pytest.raises(ModelError, match="text encoder"):
        head("tower", classes=CLASSES, output="head.safetensors")
    assert not list(Path().glob("head*"))


def test_the_ready_sets_have_as_many_sentences_as_in_the_literature():
    counts = {name: len(set(sentences)) for name, sentences in TEMPLATES.items()}

    assert counts == {
        "cars": 8, "dtd": 8, "eurosat": 3, "gtsrb": 3,
        "mnist": 1, "resisc45": 18, "sun397": 2, "svhn": 1,
    }  # fmt: skip
    assert all("{}" in sentence for sentences in TEMPLATES.values() for sentence in sentences)


def test_a_file_that_is_missing_is_named_with_what_could_stand_for_it(model):
    with pytest.raises(DataError) as caught:
        head("model", classes="none.txt", output="head.safetensors")
    assert str(caught.value.message) == "none.txt does not exist"

    with pytest.raises(DataError) as caught:
        head("model", classes=CLASSES, templates="none.txt", output="head.safetensors")
    assert "eurosat" in str(caught.value.hint)
