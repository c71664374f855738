import shutil

import pytest
import torch
import transformers
from PIL import Image
from tiny_models import CLASSES

from momacli.alignment.adapted import answers
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


def logits_of(precision: str, monkeypatch) -> torch.Tensor:
    """What evaluate makes of one task's samples."""
    found = []

    def noting(*arguments):
        answer = answers(*arguments)

        def noted(batch):
            found.append(answer(batch))
            return found[-1]

        return noted

    monkeypatch.setattr("momacli.alignment.adapted.answers", noting)
    evaluate(["experts/cats"], data="labeled", precision=precision)
    return torch.cat(found)


def test_in_bfloat16_the_encoder_is_less_exact_and_the_head_is_not(place, monkeypatch):
    exact, rough = (logits_of(precision, monkeypatch) for precision in ("float32", "bfloat16"))

    assert exact.dtype == rough.dtype == torch.float32
    assert not torch.equal(rough, rough.bfloat16().float())  # as those of a head in bfloat16 are
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 3e-2


def test_a_processor_without_tiles_evaluates_in_float32_by_itself(place, monkeypatch):
    monkeypatch.setattr("momacli.models.precision._has_tiles", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert torch.equal(logits_of("auto", monkeypatch), logits_of("float32", monkeypatch))


def test_an_unknown_precision_is_refused_before_any_work():
    with pytest.raises(UsageError, match="float32 or bfloat16, found half"):
        evaluate(["nowhere"], data="nowhere", precision="half")
    with pytest.raises(UsageError, match="float32 or bfloat16, found half"):
        compare(["nowhere"], evaluation="nowhere", options=Options(precision="half"))
