"""The folder that the commands of the demo work on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from momacli.data.folders import image_files, labels_of
from momacli.data.images import load_images
from momacli.demonstration import prepare as preparing
from momacli.demonstration.digits import TASKS, load, split
from momacli.demonstration.prepare import STAMP, Settings, prepare
from momacli.demonstration.training import Schedule
from momacli.errors import OutputError
from momacli.models.preprocessing import image_preprocessor
from momacli.progress import Notice

TINY = Settings(
    training=20,
    unlabeled=10,
    labeled=10,
    pre_training=Schedule(steps=3, batch_size=4, rate=1e-3),
    fine_tuning=Schedule(steps=2, batch_size=4, rate=1e-3),
)
NAMES = [task.name for task in TASKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a first call makes. Shared: not to be written to."""
    root = tmp_path_factory.mktemp("demo") / "here"
    prepare(root, settings=TINY)
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A folder that a test may write to."""
    return shutil.copytree(folder, tmp_path / "own")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_model_folder_is_written_for_the_base_and_each_task(folder):
    from transformers import AutoModelForImageClassification

    for task in TASKS:
        model = AutoModelForImageClassification.from_pretrained(folder / "experts" / task.name)
        assert tuple(model.config.id2label.values()) == task.classes
    base = AutoModelForImageClassification.from_pretrained(folder / "base")
    assert tuple(base.config.id2label.values()) == tuple("0123456789")


def test_experts_are_steps_away_from_the_base(folder):
    base = load_file(folder / "base" / "model.safetensors")
    for name in NAMES:
        expert = load_file(folder / "experts" / name / "model.safetensors")
        assert base.keys() == expert.keys()
        far = max((expert[key] - base[key]).abs().max() for key in base if key.startswith("vit."))
        assert 0 < far < 0.01  # two steps at a rate of 0.001


def test_evaluation_sees_no_digit_that_alignment_or_training_saw(folder):
    parts = split(1797, training=20, unlabeled=10, labeled=10)
    for name in NAMES:
        unlabeled = {int(path.stem) for path in image_files(folder / "unlabeled" / name)}
        labeled = {int(path.stem) for path in image_files(folder / "labeled" / name)}
        assert unlabeled == set(parts.unlabeled)
        assert labeled == set(parts.labeled)
        assert not unlabeled & labeled
        assert not (unlabeled | labeled) & set(parts.training)


def test_labeled_folders_bear_the_names_of_the_classes(folder):
    _, digits = load()
    for task in TASKS:
        place = folder / "labeled" / task.name
        files = image_files(place)
        expected = [task.class_of[digits[int(path.stem)]] for path in files]
        assert labels_of(place, files, task.classes) == expected


def test_training_saw_the_very_pixels_that_the_commands_will_read(folder):
    images, _ = load()
    for task in TASKS:
        to_pixels = image_preprocessor(folder / "experts" / task.name)
        read = load_images(image_files(folder / "unlabeled" / task.name), to_pixels)

        numbers = [int(path.stem) for path in read.files]
        trained_on = preparing._pixels(task.draw(images[numbers]), to_pixels)
        torch.testing.assert_close(read.values, trained_on, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_bytes(folder, own):
    assert contents(own) == contents(folder)


def test_another_seed_gives_other_models_of_the_same_images(folder, tmp_path):
    prepare(tmp_path, seed=1, settings=TINY)

    mine, other = contents(folder), contents(tmp_path)
    changed = {name for name in mine if mine[name] != other[name]}
    assert changed == {
        STAMP,
        "base/model.safetensors",
        *(f"experts/{name}/model.safetensors" for name in NAMES),
    }


def test_a_second_call_reuses_what_is_there_and_says_so(own):
    written = contents(own)
    events = []

    prepared = prepare(own, settings=TINY, listener=events.append)

    assert prepared.reused
    assert list(prepared.tasks) == NAMES
    assert events == [Notice(f"reusing the models and images that are in {own}")]
    assert contents(own) == written


def test_results_beside_the_models_are_left_alone(own):
    (own / "merged").mkdir()
    (own / "merged" / "result").write_text("kept")

    assert prepare(own, settings=TINY).reused
    prepare(own, seed=1, settings=TINY)

    assert (own / "merged" / "result").read_text() == "kept"


def test_other_settings_replace_what_was_there(own):
    more = replace(TINY, unlabeled=12)

    prepared = prepare(own, settings=more)

    assert not prepared.reused
    assert len(image_files(own / "unlabeled" / NAMES[0])) == 12


def test_an_interrupted_call_is_made_good_by_the_next(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "save_small_vit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, settings=TINY)
    monkeypatch.undo()

    prepared = prepare(tmp_path, settings=TINY)

    assert not prepared.reused
    assert contents(tmp_path) == contents(folder)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "unlabeled" / "upright" / "mine.png").write_bytes(b""),
        lambda folder: next((folder / "labeled").rglob("*.png")).unlink(),
        lambda folder: (folder / "base" / "config.json").write_text("{}"),
    ],
    ids=["added", "removed", "edited"],
)
def test_files_that_were_changed_since_are_not_replaced(own, change: Callable[[Path], object]):
    change(own)
    before = contents(own)

    with pytest.raises(OutputError, match="have changed since"):
        prepare(own, settings=TINY)

    assert contents(own) == before


def test_a_folder_with_models_of_someone_else_is_refused(tmp_path):
    (tmp_path / "experts").mkdir()

    with pytest.raises(OutputError, match="holds experts, which moma demo did not make"):
        prepare(tmp_path, settings=TINY)

    assert not (tmp_path / STAMP).exists()


def test_the_stamp_tells_the_settings(folder):
    stamp = json.loads((folder / STAMP).read_text())

    assert stamp["settings"]["seed"] == 0
    assert stamp["settings"]["fine_tuning"] == {"steps": 2, "batch_size": 4, "rate": 1e-3}


def test_transformers_shows_no_progress_bars(tmp_path, capfd):
    prepare(tmp_path, settings=TINY)

    assert capfd.readouterr() == ("", "")
