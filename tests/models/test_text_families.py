"""Each family of text classifiers from base and experts to aligned models, and back in its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_text import (
    FAMILIES,
    FIRST,
    pretrained_model,
    random_texts,
    save_tokenizer,
    text_model,
)

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.models.factory import quiet

TASKS = {"moods": 3, "topics": 5}


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory):
    """A family's name and a folder with base/, experts/, unlabeled/ and labeled/."""
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    base = pretrained_model(request.param)
    with quiet():
        base.save_pretrained(root / "base")
    save_tokenizer(root / "base")
    encoder = base.base_model.state_dict()
    for seed, (task, classes) in enumerate(TASKS.items()):
        expert = text_model(request.param, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in expert.base_model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                start = encoder.get(name, parameter)
                parameter.copy_(start + 0.02 * noise)
        with quiet():
            expert.save_pretrained(root / "experts" / task)
        save_tokenizer(root / "experts" / task)
    (root / "unlabeled").mkdir()
    (root / "unlabeled" / "moods.txt").write_text("\n".join(random_texts(30, 1)))
    records = [{"text": text, "label": n % 5} for n, text in enumerate(random_texts(40, 2))]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (root / "unlabeled" / "topics.jsonl").write_text(lines)
    (root / "topics.jsonl").write_text(lines)
    return request.param, root


@pytest.fixture
def aligned(place, monkeypatch, tmp_path):
    """The same, merged and aligned in an empty folder; what `align` reported."""
    family, root = place
    monkeypatch.chdir(tmp_path)
    merge([root / "experts" / task for task in TASKS], base=root / "base")
    report = align(
        data=root / "unlabeled",
        settings=Settings(steps=6, batch_size=4),
        cache=tmp_path / "cache",
        reading=Reading(Sampling(count=25)),
    )
    return family, root, report


def loaded(folder: Path) -> transformers.PreTrainedModel:
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_aligned_models_load_in_transformers_and_answer_with_the_rotated_features(aligned):
    family, root, report = aligned
    transforms = load_file("aligned/alignment.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained("aligned/topics")
    inputs = dict(tokenizer(random_texts(6), padding=True, return_tensors="pt"))
    if family in ("DistilBert", "T5"):
        inputs.pop("token_type_ids", None)
    for task in TASKS:
        model, expert = loaded(Path("aligned") / task), loaded(root / "experts" / task)
        with torch.no_grad():
            found = model(**inputs).logits
            A, layer = transforms[f"transform.{task}"], FIRST[family]
            own = {name for name, _ in model.named_parameters() if "." in name}
            head = {n for n in own if not n.startswith(f"{model.base_model_prefix}.")}
            for name in head:
                model.get_parameter(name).copy_(expert.get_parameter(name))
            model.get_submodule(layer).register_forward_pre_hook(
                lambda _, given, A=A: (given[0] @ A.mT,)
            )
            expected = model(**inputs).logits

        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(16)).abs().max() > 1e-4
        assert model.num_parameters() == expert.num_parameters() == report.parameters[task]
        assert report.tasks[task].logit_difference < 1e-5
        assert report.tasks[task].samples == 25
        assert report.tasks[task].objective_after <= report.tasks[task].objective_before


def test_only_the_first_layer_of_a_head_changes(aligned):
    family, root, _ = aligned
    head = "aligned/topics/model-00002-of-00002.safetensors"
    before = load_file(root / "experts" / "topics" / "model.safetensors")

    changed = {name for name, value in load_file(head).items() if not value.equal(before[name])}

    assert changed == {f"{FIRST[family]}.weight"}


def test_accuracy_on_labeled_texts_is_what_transformers_counts(place, monkeypatch, tmp_path):
    family, root = place
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "experts" / "topics", "topics")
    model = loaded(Path("topics"))
    tokenizer = transformers.AutoTokenizer.from_pretrained("topics")
    correct = 0
    for line in (root / "topics.jsonl").read_text().splitlines():
        record = json.loads(line)
        inputs = dict(tokenizer(record["text"], return_tensors="pt"))
        if family in ("DistilBert", "T5"):
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            correct += int(model(**inputs).logits.argmax()) == record["label"]

    score = evaluate(["topics"], data=root / "topics.jsonl").scores["topics"]["topics"]

    assert (score.correct, score.total) == (correct, 40)
