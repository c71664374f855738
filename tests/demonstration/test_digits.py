"""The tasks of the demo: real digits that look different and are asked different things."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from momacli.demonstration.digits import (
    SIZE,
    TASKS,
    Images,
    Indices,
    load,
    moved,
    split,
    write_labeled,
    write_unlabeled,
)


@pytest.fixture(scope="module")
def handwriting() -> tuple[Images, Indices]:
    return load()


def test_digits_are_the_bundled_ones_in_the_middle_of_a_black_margin(handwriting):
    images, digits = handwriting

    assert images.shape == (1797, SIZE, SIZE)
    assert images.max() == 255
    assert np.bincount(digits).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    inner = images[:, 4:-4, 4:-4]
    assert inner.sum(dtype=np.int64) == images.sum(dtype=np.int64)


def test_no_digit_is_in_two_parts_of_the_split():
    parts = split(1797, training=797, unlabeled=500, labeled=500)

    dealt = np.concatenate([parts.training, parts.unlabeled, parts.labeled])
    assert sorted(dealt) == list(range(1797))


def test_the_split_is_always_the_same():
    first, second = (split(100, training=10, unlabeled=20, labeled=30) for _ in range(2))

    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_split_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="is more than 10"):
        split(10, training=5, unlabeled=5, labeled=1)


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations(TASKS, 2)), ids=lambda task: task.name
)
def test_the_images_of_two_tasks_are_visibly_different(handwriting, one, other):
    images, _ = handwriting

    distance = np.abs(one.draw(images).astype(int) - other.draw(images)).mean()

    assert distance > 20  # of 255 gray levels, over all pixels; the margin is two thirds of them


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_drawing_keeps_every_pixel_of_a_digit(handwriting, task):
    images, _ = handwriting

    drawn = task.draw(images)

    assert drawn.shape == images.shape
    assert drawn.dtype == np.uint8
    ink = 255 - drawn if task.name == "inverted" else drawn
    np.testing.assert_array_equal(ink.sum((1, 2), dtype=int), images.sum((1, 2), dtype=int))


def test_tasks_have_label_spaces_of_several_sizes():
    assert len({task.name for task in TASKS}) == len(TASKS) >= 4
    assert {len(task.classes) for task in TASKS} == {10, 5, 3, 2}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_class_of_a_task_is_the_class_of_some_digit(task):
    assert len(task.class_of) == 10
    assert set(task.labels(np.arange(10))) == set(range(len(task.classes)))


def test_even_and_odd_are_told_by_the_last_bit():
    shifted = next(task for task in TASKS if task.name == "shifted")

    labels = shifted.labels(np.array([4, 7, 0]))

    assert [shifted.classes[label] for label in labels] == ["even", "odd", "even"]


def test_moving_shifts_by_whole_pixels():
    image = np.zeros((1, SIZE, SIZE), dtype=np.uint8)
    image[0, 5, 6] = 200

    assert moved(image, 2, -1)[0, 7, 5] == 200


def test_written_images_come_back_pixel_by_pixel(handwriting, tmp_path: Path):
    images, digits = handwriting
    task = next(task for task in TASKS if task.name == "rotated")  # not contiguous in memory
    drawn, numbers = task.draw(images[:20]), np.arange(20)

    write_unlabeled(tmp_path / "unlabeled", drawn, numbers)
    write_labeled(tmp_path / "labeled", drawn, numbers, task.labels(digits[:20]), task.classes)

    files = sorted((tmp_path / "unlabeled").iterdir())
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(read, drawn)
    for number, digit in zip(numbers, digits, strict=False):
        file = tmp_path / "labeled" / task.classes[digit] / f"{number:04}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)), drawn[number])
