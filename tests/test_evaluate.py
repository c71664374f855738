import shutil

import pytest
import torch
import transformers
from PIL import Image
from tiny_models import CLASSES

from momacli.align import align
from momacli.alignment.adapted import Answers
from momacli.alignment.settings import Settings
from momacli.compare import Options, compare
from momacli.errors import DataError, UsageError
from momacli.evaluate import Score, evaluate
from momacli.merge import merge


@pytest.fixture
def place(tmp_path, monkeypatch, vit_folders, vit_images):
    shutil.copytree(vit_folders, tmp_path / "experts")
    shutil.move(tmp_path / "experts" / "base", tmp_path / "base")
    shutil.copytree(vit_images / "labeled", tmp_path / "labeled")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted_by_hand(place, task: str) -> int:
    model = transformers.AutoModelForImageClassification.from_pretrained(place / "experts" / task)
    processor = transformers.AutoImageProcessor.from_pretrained(place / "experts" / task)
    correct = 0
    for file in (place / "labeled" / task).glob("*/*.png"):
        inputs = processor(images=Image.open(file).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            answer = model.eval()(**inputs).logits.argmax().item()
        correct += model.config.id2label[answer] == file.parent.name
    return correct


def test_scores_count_what_transformers_answers(place):
    report = evaluate(["experts"], data="labeled")

    for task in CLASSES:
        assert report.scores["experts"][task] == Score(counted_by_hand(place, task), 40)
    accuracies = [score.accuracy for score in report.scores["experts"].values()]
    assert report.average("experts") == pytest.approx(sum(accuracies) / 3)


def test_models_of_one_task_or_several_as_folder_or_file_are_compared(place):
    merge([f"experts/{task}" for task in CLASSES], base="base")
    files = [f"{task}=experts/{task}/model.safetensors" for task in CLASSES]
    merge(files, base="base/model.safetensors")
    report = evaluate(["merged", "merged.safetensors"], data="labeled")
    alone = evaluate(["experts/cats"], data="labeled")

    assert report.scores["merged"] == report.scores["merged.safetensors"]
    assert list(alone.scores["experts/cats"]) == ["cats"]


def test_a_class_folder_the_model_does_not_know_is_an_error(place):
    (place / "labeled/cats/lion").rename(place / "labeled/cats/tiger")

    with pytest.raises(DataError) as caught:
        evaluate(["experts"], data="labeled")
    assert caught.value.details == ("tiger",)


def test_the_interval_is_wilsons(place):
    low, high = Score(8, 10).interval  # worked example: 0.4902 to 0.9433

    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Score(0, 5).interval[0] == 0.0
    assert Score(5, 5).interval[1] == pytest.approx(1.0)


@pytest.fixture
def heard(monkeypatch):
    """The logits that evaluate makes of batches, and whether the encoder ran for them."""
    found = []

    class Noting(Answers):
        def __call__(self, batch):
            before = len(found)
            logits, features = super().__call__(batch)
            found[before:] = [(logits, True)]
            return logits, features

        def of_features(self, features):
            found.append((super().of_features(features), False))
            return found[-1][0]

    monkeypatch.setattr("momacli.alignment.adapted.Answers", Noting)
    return found


def logits_of(heard, *models, precision="float32") -> tuple[torch.Tensor, int]:
    """What evaluate makes of all samples, and of how many batches the encoder made features."""
    heard.clear()
    evaluate(models, data="labeled", precision=precision)
    return torch.cat([logits.flatten() for logits, _ in heard]), sum(ran for _, ran in heard)


def test_in_bfloat16_the_encoder_is_less_exact_and_the_head_is_not(place, heard):
    exact, rough = (
        logits_of(heard, "experts/cats", precision=precision)[0]
        for precision in ("float32", "bfloat16")
    )

    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())  # as those of a head in bfloat16 are
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 3e-2


def test_a_processor_without_tiles_evaluates_in_float32_by_itself(place, heard, monkeypatch):
    monkeypatch.setattr("momacli.models.precision._has_tiles", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    found, exact = (
        logits_of(heard, "experts/cats", precision=precision)[0]
        for precision in ("auto", "float32")
    )
    assert torch.equal(found, exact)


def test_an_unknown_precision_is_refused_before_any_work():
    with pytest.raises(UsageError, match="float32 or bfloat16, found half"):
        evaluate(["nowhere"], data="nowhere", precision="half")
    with pytest.raises(UsageError, match="float32 or bfloat16, found half"):
        compare(["nowhere"], evaluation="nowhere", options=Options(precision="half"))


def aligned(**options):
    merge([f"experts/{task}" for task in CLASSES], base="base")
    align("merged", data="labeled", output="aligned", **options)


@pytest.mark.parametrize(
    "options",
    [{"settings": Settings(mask="none")}, {"method": "surgery", "options": {"steps": 20}}],
    ids=["rotations", "adapters"],
)
def test_models_with_one_encoder_answer_as_each_alone_and_it_runs_once(place, heard, options):
    aligned(**options)
    apart = [logits_of(heard, model) for model in ("merged", "aligned")]
    together, ran = logits_of(heard, "merged", "aligned")

    assert [ran for _, ran in apart] == [3, 3]
    assert ran == 3
    assert torch.allclose(together, torch.cat([logits for logits, _ in apart]), atol=1e-5)
    assert not torch.allclose(*[logits for logits, _ in apart], atol=1e-3)


def test_an_encoder_with_other_weights_runs_again(place, heard):
    aligned(settings=Settings(steps=20, batch_size=8))
    apart = [logits_of(heard, model)[0] for model in ("merged", "aligned")]
    together, ran = logits_of(heard, "merged", "aligned")

    assert ran == 6
    assert torch.equal(together, torch.cat(apart))
