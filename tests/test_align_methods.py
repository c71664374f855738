"""Methods other than moma's own: heads that are trained, and adapters beside a model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import CLASSES
from tiny_text import random_texts, save_tokenizer, text_model

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.errors import CheckpointError, ConflictError, UsageError
from momacli.evaluate import evaluate
from momacli.info import info
from momacli.merge import merge
from momacli.models.factory import quiet
from momacli.progress import Notice, Progress
from momacli.verify import verify

QUICK = {"steps": 40, "rate": 0.01}
ADDING = ("surgery", "probsurgery")


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit_folders, vit_files, vit_images):
    """A folder in which the experts are merged, to folder and file, and aligned each way."""
    root = tmp_path_factory.mktemp("align_methods")
    shutil.copytree(vit_folders, root / "experts")
    shutil.move(root / "experts" / "base", root / "base")
    shutil.copytree(vit_files, root / "ckpts")
    shutil.copy(root / "base" / "preprocessor_config.json", root / "ckpts")
    for folder in ("unlabeled", "labeled"):
        (root / folder).symlink_to(vit_images / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        merge([f"experts/{task}" for task in CLASSES], base="base")
        for method in (*ADDING, "surgery-v2", "aligned-c"):
            align("merged", data="unlabeled", method=method, options=QUICK, output=method)
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def shared(made, monkeypatch):
    """That folder itself, for tests that write nothing."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    return made


def images(place: Path, pattern: str) -> list[Path]:
    return sorted(place.glob(pattern))


def features_and_head(folder: Path, files: list[Path]) -> tuple[torch.Tensor, torch.nn.Linear]:
    """What transformers itself makes of images, and the head it would put them in."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    opened = [Image.open(file).convert("RGB") for file in files]
    pixels = processor(images=opened, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.vit(pixels).last_hidden_state[:, 0], model.classifier


def mended(place: Path, method: str, task: str, z: torch.Tensor) -> torch.Tensor:
    """The adapter's formula, from the tensors of its file."""
    tensors = load_file(place / method / "surgery.safetensors")
    down, up = (tensors[f"adapter.{part}.{task}"] for part in ("down", "up"))
    return z - torch.relu(z @ down.T) @ up.T


@pytest.mark.parametrize("method", ["surgery", "aligned-c", "moma"])
def test_features_of_a_merged_model_are_there_for_its_next_alignment(place, method):
    stages = []
    given = {"settings": Settings(mask="none", views=1)} if method == "moma" else {"options": QUICK}

    align(
        "merged",
        data="unlabeled",
        method=method,
        output="again",
        listener=lambda event: stages.append(getattr(event, "stage", "")),
        force=True,
        **given,
    )

    assert not [stage for stage in stages if "features" in stage]


def test_features_of_another_merged_model_are_computed(place):
    stages = []
    merge([f"experts/{task}" for task in CLASSES], base="base", method="average", output="other")

    align(
        "other",
        data="unlabeled",
        method="surgery",
        options=QUICK,
        listener=lambda event: stages.append(getattr(event, "stage", "")),
    )

    assert {stage for stage in stages if "features" in stage} == {"merged features"}


@pytest.mark.parametrize("method", ADDING)
def test_the_weights_of_a_model_with_adapters_are_those_of_the_merge(shared, method):
    for task in CLASSES:
        for file in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            before, after = (load_file(shared / out / task / file) for out in ("merged", method))
            assert before.keys() == after.keys()
            assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("method", ADDING)
def test_every_task_has_an_adapter_that_brings_features_nearer(shared, method):
    tensors = load_file(shared / method / "surgery.safetensors")
    assert {name.rpartition(".")[2] for name in tensors} == set(CLASSES)

    for task in CLASSES:
        files = images(shared, f"unlabeled/{task}/*.png")
        merged, _ = features_and_head(shared / "merged" / task, files)
        wanted, _ = features_and_head(shared / "experts" / task, files)
        before, after = (
            float((z - wanted).abs().mean()) for z in (merged, mended(shared, method, task, merged))
        )
        assert after < before


@pytest.mark.parametrize("method", ADDING)
def test_evaluate_answers_with_the_adapter_and_says_so(shared, method):
    told = []
    report = evaluate([method], data="labeled", listener=told.append)

    for task, classes in CLASSES.items():
        correct = 0
        for label, name in enumerate(classes):
            files = images(shared, f"labeled/{task}/{name}/*.png")
            z, head = features_and_head(shared / method / task, files)
            answers = head(mended(shared, method, task, z)).argmax(dim=1)
            correct += int((answers == label).sum())
        assert report.scores[method][task].correct == correct
    notes = [event.text for event in told if isinstance(event, Notice)]
    assert f"{method}: with the adapters in {method}/surgery.safetensors" in notes
    assert report.added == {method: 3 * 2 * 16 * (16 if method == "surgery" else 128)}


def test_adapters_behind_every_block_are_run_by_evaluate(shared):
    report = evaluate(["surgery-v2"], data="labeled")

    tensors = load_file(shared / "surgery-v2" / "surgery.safetensors")
    for task, classes in CLASSES.items():
        model = transformers.AutoModelForImageClassification.from_pretrained(
            shared / "surgery-v2" / task
        ).eval()
        own = {k.split(".")[1]: v for k, v in tensors.items() if k.endswith(f".{task}")}
        correct = 0
        for label, name in enumerate(classes):
            pixels = pixels_of(shared / "surgery-v2" / task, f"../../labeled/{task}/{name}/*.png")
            correct += int((deep_answers(model, own, pixels).argmax(dim=1) == label).sum())
        assert report.scores["surgery-v2"][task].correct == correct
    depth = model.config.num_hidden_layers
    assert report.added == {"surgery-v2": 3 * 2 * 16 * 16 * (depth + 1)}


def pixels_of(folder: Path, pattern: str) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    opened = [Image.open(file).convert("RGB") for file in sorted(folder.glob(pattern))]
    return processor(images=opened, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def deep_answers(model, parts, pixels: torch.Tensor) -> torch.Tensor:
    """A ViT with an adapter behind every block, layer by layer as its paper has it."""
    vit = model.vit
    tokens = vit.embeddings(pixels)
    layers = next(m for m in vit.modules() if isinstance(m, torch.nn.ModuleList))
    for number, layer in enumerate(layers):
        tokens = layer(tokens)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        hidden = torch.relu(tokens @ parts[f"down-{number}"].T)
        tokens = tokens - hidden @ parts[f"up-{number}"].T
    z = vit.layernorm(tokens)[:, 0]
    return model.classifier(z - torch.relu(z @ parts["down"].T) @ parts["up"].T)


def test_adapters_behind_every_block_bring_features_nearer_than_that_behind_the_encoder(made):
    cards = {
        method: (made / method / "cats" / "README.md").read_text()
        for method in ("surgery", "surgery-v2")
    }
    after = {
        method: float(re.search(r"objective, after[^0-9]*([0-9.e-]+)", card)[1])
        for method, card in cards.items()
    }

    assert after["surgery-v2"] < after["surgery"]


def test_without_its_adapter_a_model_is_the_merge(shared):
    report = evaluate(["surgery", "merged"], data="labeled", adapter=False)

    assert report.scores["surgery"] == report.scores["merged"]
    assert report.added == {}


def test_the_folder_of_one_task_finds_the_adapter_around_it(shared):
    whole = evaluate(["surgery"], data="labeled").scores["surgery"]
    alone = evaluate(["surgery/cats"], data="labeled").scores["surgery/cats"]

    assert alone["cats"] == whole["cats"]


def test_a_missing_or_foreign_adapter_is_an_error_and_can_be_left_out(place):
    shutil.copy("probsurgery/surgery.safetensors", "surgery/surgery.safetensors")
    with pytest.raises(ConflictError, match="is not the adapter"):
        evaluate(["surgery"], data="labeled")
    with pytest.raises(ConflictError):
        verify("surgery")

    Path("surgery/surgery.safetensors").unlink()
    with pytest.raises(CheckpointError, match="--no-adapter"):
        evaluate(["surgery"], data="labeled")
    evaluate(["surgery"], data="labeled", adapter=False)


def test_how_many_parameters_were_added_is_reported_and_recorded(place):
    report = align("merged", data="unlabeled", method="surgery", options={"rank": 3, "steps": 1})

    assert report.added == dict.fromkeys(CLASSES, 2 * 3 * 16)
    with safe_open("aligned/cats/model-00001-of-00002.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["moma"])
    assert recipe["parameters"]["added_parameters"] == 96
    assert recipe["parameters"]["method"] == "surgery"
    card = Path("aligned/cats/README.md").read_text()
    assert "adds `96` parameters" in card
    assert "Nothing was added" not in card


def test_info_counts_the_parameters_of_the_adapters(shared):
    described = info("surgery")

    assert described.added is not None
    assert described.added.parameters == 3 * 2 * 16 * 16
    assert described.added.path == Path("surgery/surgery.safetensors")
    assert info("aligned-c").added is None


@pytest.mark.parametrize("method", [*ADDING, "surgery-v2", "aligned-c"])
def test_verify_makes_the_output_again(shared, method):
    report = verify(method)

    assert report.equal
    assert report.others == ()


def test_trained_heads_have_the_size_of_the_old_ones_and_load_without_moma(shared):
    for task, classes in CLASSES.items():
        model, loading = transformers.AutoModelForImageClassification.from_pretrained(
            shared / "aligned-c" / task, output_loading_info=True
        )
        expert = transformers.AutoModelForImageClassification.from_pretrained(
            shared / "experts" / task
        )
        assert not any(loading.values())
        assert model.num_parameters() == expert.num_parameters()
        assert tuple(model.config.id2label.values()) == classes


def test_trained_heads_answer_more_like_the_experts(shared):
    for task in CLASSES:
        files = images(shared, f"unlabeled/{task}/*.png")
        wanted, expert = features_and_head(shared / "experts" / task, files)
        answers = torch.log_softmax(expert(wanted), dim=1).detach()
        distances = []
        for out in ("merged", "aligned-c"):
            z, head = features_and_head(shared / out / task, files)
            found = torch.log_softmax(head(z), dim=1).detach()
            distances.append(float((answers.exp() * (answers - found)).sum(dim=1).mean()))
        assert distances[1] < distances[0]


def test_absorb_puts_trained_heads_in_again_and_refuses_adapters(place):
    absorb("merged", "aligned-c/alignment.safetensors", output="again")

    for task in CLASSES:
        one, other = (
            load_file(f"{out}/{task}/model-00002-of-00002.safetensors")
            for out in ("aligned-c", "again")
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ConflictError, match="cannot be folded"):
        absorb("merged", "surgery/surgery.safetensors", output="folded")
    assert not Path("folded").exists()


def test_a_plain_file_has_its_adapter_beside_it(place):
    merge(sorted(Path("ckpts").glob("*.safetensors")))
    report = align("merged.safetensors", data="unlabeled", method="surgery", options=QUICK)
    for task, classes in CLASSES.items():
        Path("numbered", task).mkdir(parents=True)
        for number, name in enumerate(classes):
            Path("numbered", task, f"LABEL_{number}").symlink_to(place / "labeled" / task / name)
    scores = evaluate(["aligned.safetensors"], data="numbered").scores["aligned.safetensors"]

    assert report.alignment == Path("aligned.surgery.safetensors")
    assert scores == evaluate(["surgery"], data="labeled").scores["surgery"]
    assert verify("aligned.safetensors").equal


def test_a_model_with_adapters_is_no_start_for_another_alignment(place):
    with pytest.raises(ConflictError, match="adapter"):
        align("surgery", data="unlabeled", settings=Settings(steps=1), output="twice")


@pytest.mark.parametrize("method", ["surgery", "aligned-c"])
def test_a_stopped_run_goes_on_after_the_last_task_and_ends_with_the_same_bytes(place, method):
    def stop(event):
        if isinstance(event, Progress) and event.stage == f"fitting {method}" and event.done > 40:
            raise KeyboardInterrupt

    arguments = {"data": "unlabeled", "method": method, "options": QUICK, "output": "stopped"}
    with pytest.raises(KeyboardInterrupt):
        align("merged", **arguments, listener=stop)
    assert not Path("stopped").exists()
    seen = []
    align("merged", **arguments, listener=seen.append)

    fitted = [e.values for e in seen if isinstance(e, Progress) and e.stage == f"fitting {method}"]
    assert [list(values) for values in fitted] == [["cats"], ["dogs"]]
    assert not Path("stopped.state.safetensors").exists()
    for file in sorted(Path(method).rglob("*")):
        if file.is_file():
            assert (Path("stopped") / file.relative_to(method)).read_bytes() == file.read_bytes()


def test_a_dry_run_writes_nothing(place):
    before = sorted(place.rglob("*"))
    report = align("merged", data="unlabeled", method="probsurgery", dry_run=True)

    assert report.settings["steps"] == 5000
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("sugery", {}, "did you mean surgery"),
        ("surgery", {"rnk": 3}, "--set rnk"),
        ("surgery", {"rank": "many"}, "--set rank of surgery: expected int, found many"),
        ("surgery", {"rank": 0}, "must be at least 1"),
        ("probsurgery", {"weight": -1.0}, "no less than 0"),
        ("moma", {"rank": 3}, "takes settings"),
    ],
)
def test_what_a_method_does_not_have_is_said_before_any_work(shared, method, options, words):
    with pytest.raises(UsageError) as caught:
        align("merged", data="unlabeled", method=method, options=options, output="none")

    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["surgery", "surgery-v2"])
def test_adapters_stand_before_heads_of_several_layers_too(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in ("base", "moods"):
        with quiet():
            text_model("Roberta").save_pretrained(name)
        save_tokenizer(Path(name))
    texts = random_texts(12)
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(texts)]
    Path("moods.jsonl").write_text("\n".join(map(json.dumps, rows)))
    merge(["moods"], base="base", output="merged")
    arguments = {"data": "moods=moods.jsonl", "cache": "cache"}

    report = align("merged", method=method, options={"steps": 2}, output="out", **arguments)
    scores = evaluate(["out"], data="moods=moods.jsonl").scores["out"]

    assert report.tasks["moods"].logit_difference < 1e-5
    assert scores["moods"].total == 12
