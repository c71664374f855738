"""More views of each image: random crops, which depend on nothing but the image's place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from momacli.data.images import load_images
from momacli.data.reading import check_views
from momacli.data.views import random_crop, views_of_each
from momacli.errors import UsageError


@pytest.mark.parametrize(
    ("images", "views"),
    [(1, 10), (29, 10), (30, 10), (31, 10), (100, 3), (299, 2), (300, 1), (600, 1)],
)
def test_few_images_are_brought_to_300_with_at_most_10_views_of_each(images: int, views: int):
    assert views_of_each("auto", images) == views
    assert views_of_each(7, images) == 7


@pytest.mark.parametrize("views", [0, -1, 1.5, "many"])
def test_what_is_no_number_of_views_is_refused(views):
    with pytest.raises(UsageError, match="views must be at least 1, or auto"):
        check_views(views)


def ramp(width: int, height: int) -> Image.Image:
    """An image whose red tells the column and whose green tells the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 100), (64, 240), (9, 8), (1, 1)])
def test_a_crop_is_a_part_of_the_image_in_its_proportions(size):
    width, height = size
    shares = set()
    for number in range(50):
        crop = random_crop(ramp(*size), f"{number}")
        shares.add(crop.size)

        assert 0.7 * width - 1 <= crop.width <= width
        assert crop.width / width == pytest.approx(crop.height / height, abs=1 / min(size))
        red, green, _ = np.moveaxis(np.asarray(crop, dtype=float), -1, 0)
        # a step to the right or down is a step of the image: nothing is stretched or turned
        for steps in (np.diff(red, axis=1), np.diff(green, axis=0)):
            assert steps.size == 0 or steps.mean() == pytest.approx(1, abs=0.2)
        assert 0 <= red.min() <= red.max() < width
    assert len(shares) > 1 or width == 1


def test_crops_lie_anywhere_in_the_image():
    corners = [np.asarray(random_crop(ramp(200, 100), f"{n}"))[0, 0] for n in range(300)]

    left, top, _ = np.array(corners, dtype=float).T
    assert left.min() < 4
    assert 45 < left.max() <= 61  # 0.3 of the width, and a pixel
    assert 22 < top.max() <= 31
    assert abs(np.corrcoef(left - left.mean(), top - top.mean())[0, 1]) < 0.9  # chosen apart


def as_tensors(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.tensor(np.asarray(one.resize((8, 8)), int)) for one in images])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(70)]
    for number, path in enumerate(paths):
        ramp(40 + number, 30).save(path)
    return paths


def test_the_images_come_first_and_then_their_views_in_the_same_order(files):
    plain, seen = load_images(files, as_tensors), load_images(files, as_tensors, views=3)

    assert len(seen) == 210
    assert seen.files == plain.files * 3
    assert torch.equal(seen.values[:70], plain.values)
    expected = [random_crop(Image.open(path), f"{n}/2") for n, path in enumerate(files)]
    assert torch.equal(seen.values[140:], as_tensors(expected))


def test_a_view_does_not_depend_on_how_many_there_are_nor_on_images_that_are_left_out(files):
    files[5].write_text("no image")
    three, four = (load_images(files, as_tensors, views=n) for n in (3, 4))

    assert len(three) == 3 * 69
    assert torch.equal(three.values, four.values[: 3 * 69])
    assert files[5] not in three.files


def test_features_of_views_are_kept_apart_from_those_of_images(files):
    plain, seen = load_images(files, as_tensors), load_images(files, as_tensors, views=2)

    assert plain.preparation != seen.preparation
