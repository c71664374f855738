"""Networks that moma does not know: features and head are modules that the user names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES
from tiny_text import random_texts, save_tokenizer, text_config
from torch import Tensor

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.errors import ModelError, MomaError, UsageError
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.models.factory import quiet

TASKS = ("first", "second")
QUICK = Settings(steps=4, batch_size=4)


def save_tasks(kind: type[transformers.PreTrainedModel], **options: object) -> None:
    """Folders base, first and second of text models, and unlabeled/ and labeled/ for them."""
    for seed, name in enumerate(("base", *TASKS)):
        torch.manual_seed(0)
        config = text_config("Bert")
        for key, value in options.items():
            setattr(config, key, value)
        model = kind(config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
                if seed:
                    size = 0.5 if key.startswith("cls.") else 0.05
                    parameter.add_(size * torch.randn(parameter.shape))
        with quiet():
            model.save_pretrained(name)
        save_tokenizer(Path(name))
    for folder in ("unlabeled", "labeled"):
        Path(folder).mkdir()
    for seed, task in enumerate(TASKS):
        texts = random_texts(20, seed)
        Path("unlabeled", f"{task}.txt").write_text("\n".join(texts))
        lines = [json.dumps({"text": text, "label": n % 2}) for n, text in enumerate(texts)]
        Path("labeled", f"{task}.jsonl").write_text("\n".join(lines))


def loaded(kind: type[transformers.PreTrainedModel], folder: Path) -> transformers.PreTrainedModel:
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def inputs_of(texts: list[str]) -> dict[str, Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained("base")
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Models for next-sentence prediction, merged with the module of their head named."""
    monkeypatch.chdir(tmp_path)
    save_tasks(transformers.BertForNextSentencePrediction)
    merge(list(TASKS), base="base", heads=["cls"])


def test_a_named_modules_output_is_aligned_and_the_named_head_absorbs(pairs):
    report = align(data="unlabeled", settings=QUICK, cache="cache", features="bert.pooler")
    transforms = load_file("aligned/alignment.safetensors")
    inputs = inputs_of(random_texts(5, seed=7))

    for task in TASKS:
        model = loaded(transformers.BertForNextSentencePrediction, Path("aligned", task))
        before = load_file(f"{task}/model.safetensors")
        A, W = transforms[f"transform.{task}"], before["cls.seq_relationship.weight"]
        with torch.no_grad():
            z = model.bert(**inputs).pooler_output
            expected = z @ A.mT @ W.mT + before["cls.seq_relationship.bias"]
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(16)).abs().max() > 1e-4
        assert report.tasks[task].logit_difference < 1e-5


def test_accuracy_of_a_network_with_named_modules_is_its_own(pairs):
    texts = Path("unlabeled/first.txt").read_text().splitlines()
    model = loaded(transformers.BertForNextSentencePrediction, Path("first"))
    with torch.no_grad():
        answers = model(**inputs_of(texts)).logits.argmax(dim=1)
    correct = int((answers == torch.arange(20) % 2).sum())

    named = {"features": "bert.pooler", "heads": ["cls"]}
    report = evaluate(["first"], data="labeled/first.jsonl", **named)
    align(data="unlabeled", settings=QUICK, cache="cache", features="bert.pooler")
    recorded = evaluate(["aligned"], data="labeled")

    assert report.scores["first"]["first"].correct == correct
    assert set(recorded.scores["aligned"]) == set(TASKS)


def test_a_head_of_several_layers_within_a_named_module_changes_in_its_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = transformers.BertForMaskedLM
    save_tasks(kind, tie_word_embeddings=False)
    merge(list(TASKS), base="base", heads=["cls"])
    report = align(data="unlabeled", settings=QUICK, cache="cache", pooling="cls")
    inputs = inputs_of(random_texts(5, seed=7))

    for task in TASKS:
        before, after = loaded(kind, Path(task)), loaded(kind, Path("aligned", task))
        changed = {
            name
            for name, value in after.cls.state_dict().items()
            if not value.equal(before.cls.state_dict()[name])
        }
        A = load_file("aligned/alignment.safetensors")[f"transform.{task}"]
        with torch.no_grad():
            z = after.bert(**inputs).last_hidden_state[:, 0]
            expected = before.cls(z @ A.mT)
            torch.testing.assert_close(after.cls(z), expected, atol=1e-4, rtol=1e-4)
        assert changed == {"predictions.transform.dense.weight"}
        assert report.tasks[task].logit_difference < 1e-4


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "features of BertForNextSentencePrediction are is unknown"),
        ({"features": "bert.nonsense"}, "has no module bert.nonsense"),
        ({"features": "bert.encoder"}, "has to become one vector a sample"),
        ({"features": "bert.pooler", "pooling": "cls"}, "has to become one vector a sample"),
        ({"features": "bert.encoder.layer.0.attention.self", "pooling": "cls"}, "Δ"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_users_terms(pairs, named, message):
    if message == "Δ":  # a tuple: its first tensor is taken
        report = align(data="unlabeled", settings=QUICK, cache="cache", **named)
        assert report.tasks["first"].logit_difference < 1e-5
        return

    with pytest.raises(MomaError) as caught:
        align(data="unlabeled", settings=QUICK, cache="cache", **named)
    assert message in caught.value.message


@pytest.mark.parametrize("kind", ["ViT", "ConvNext", "ResNet"])
def test_plain_image_encoders_are_aligned_with_heads_beside(
    kind, tmp_path, monkeypatch, vit_images
):
    monkeypatch.chdir(tmp_path)
    config = {
        "ViT": transformers.ViTConfig(
            image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=24,
        ),
        "ConvNext": transformers.ConvNextConfig(hidden_sizes=[16], depths=[1], num_stages=1),
        "ResNet": transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16], depths=[1], layer_type="basic"
        ),
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    base = getattr(transformers, f"{kind}Model")(config)
    with quiet():
        base.save_pretrained("base")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained("base")
    for task, classes in CLASSES.items():
        shutil.copytree("base", task)
        state = {
            key: value + 0.05 * torch.randn(value.shape) if value.is_floating_point() else value
            for key, value in load_file("base/model.safetensors").items()
        }
        state |= {key: value.abs() for key, value in state.items() if "running_var" in key}
        save_file(state, f"{task}/model.safetensors", metadata={"format": "pt"})
        head = {"weight": torch.randn(len(classes), 16), "bias": torch.randn(len(classes))}
        save_file(head, f"{task}/head_{task}.safetensors")
    merge(list(CLASSES), base="base")
    pooling = "mean" if kind == "ResNet" else "pooler"  # its pooler is just that
    report = align(data=vit_images / "unlabeled", settings=QUICK, cache="cache", pooling=pooling)
    pixels = torch.randn(3, 3, 8, 8)

    for task in CLASSES:
        model = loaded(getattr(transformers, f"{kind}Model"), Path("aligned", task))
        before = load_file(f"{task}/head_{task}.safetensors")
        after = load_file(f"aligned/{task}/head_{task}.safetensors")
        A = load_file("aligned/alignment.safetensors")[f"transform.{task}"]
        with torch.no_grad():
            z = model(pixels).pooler_output.flatten(1)
        torch.testing.assert_close(
            z @ after["weight"].mT, z @ A.mT @ before["weight"].mT, atol=1e-4, rtol=1e-4
        )
        assert report.tasks[task].logit_difference < 1e-4


def test_a_class_that_is_none_of_transformers_is_not_looked_for_elsewhere(pairs):
    for task in TASKS:
        file = Path("merged", task, "config.json")
        config = json.loads(file.read_text()) | {"architectures": ["os.system"]}
        file.write_text(json.dumps(config))

    with pytest.raises(ModelError, match="has no os"):
        align(data="unlabeled", settings=QUICK, cache="cache", features="bert.pooler")


def test_heads_in_several_modules_are_refused_with_their_names(pairs):
    merge(list(TASKS), base="base", heads=["cls", "bert.pooler"], output="merged-2")

    with pytest.raises(UsageError, match="several modules"):
        align("merged-2", data="unlabeled", cache="cache", pooling="cls")
