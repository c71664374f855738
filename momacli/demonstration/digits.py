"""Handwritten digits as tasks that differ in how images look and in what is asked about them.

The digits are scikit-learn's bundled copy of the UCI optical recognition data: 1797 images of
8 x 8 pixels with 17 gray levels, written by 13 people.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]  # [N, SIZE, SIZE]
Indices = NDArray[np.int64]  # [N]

SIZE = 24
"""Pixels a side: a digit of 16, smoothly enlarged, and a margin of 4 around it."""

_DIGIT, _MARGIN = 16, 4


def load() -> tuple[Images, Indices]:
    """Return all digits, white ink on black in the middle of the image, and which they are."""
    from sklearn.datasets import load_digits

    small, digits = load_digits(return_X_y=True)
    grays = np.rint(small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    bilinear = Image.Resampling.BILINEAR
    large = [Image.fromarray(gray).resize((_DIGIT, _DIGIT), bilinear) for gray in grays]
    margins = ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))
    return np.pad(np.stack([np.asarray(image) for image in large]), margins), digits.astype(
        np.int64
    )


def moved(images: Images, down: int, right: int) -> Images:
    """Shift by whole pixels; up to 4 in each direction nothing of a digit is lost."""
    return np.roll(images, (down, right), axis=(1, 2))


def _upright(images: Images) -> Images:
    return images


def _rotated(images: Images) -> Images:
    return np.rot90(images, axes=(1, 2))


def _inverted(images: Images) -> Images:
    return 255 - images


def _shifted(images: Images) -> Images:
    return moved(images, _MARGIN, _MARGIN)


def _mirrored(images: Images) -> Images:
    return images[:, :, ::-1]


@dataclass(frozen=True)
class Task:
    """What is asked about a digit, and how its image looks."""

    name: str
    description: str
    classes: tuple[str, ...]
    class_of: tuple[int, ...]  # index into `classes` of the digits 0 to 9
    draw: Callable[[Images], Images]

    def labels(self, digits: Indices) -> Indices:
        """Class index of each digit."""
        return np.asarray(self.class_of, dtype=np.int64)[digits]


_DIGITS = tuple("0123456789")

TASKS: tuple[Task, ...] = (
    Task(
        "upright",
        "Which digit? White on black, upright.",
        _DIGITS,
        tuple(range(10)),
        _upright,
    ),
    Task(
        "rotated",
        "Which digit? Turned left by 90 degrees.",
        _DIGITS,
        tuple(range(10)),
        _rotated,
    ),
    Task(
        "inverted",
        "Which pair of neighbors? Black on white.",
        ("0-1", "2-3", "4-5", "6-7", "8-9"),
        (0, 0, 1, 1, 2, 2, 3, 3, 4, 4),
        _inverted,
    ),
    Task(
        "mirrored",
        "Low, middle or high? As seen in a mirror.",
        ("low", "middle", "high"),
        (0, 0, 0, 1, 1, 1, 1, 2, 2, 2),
        _mirrored,
    ),
    Task(
        "shifted",
        "Even or odd? In the lower right corner.",
        ("even", "odd"),
        (0, 1) * 5,
        _shifted,
    ),
)


@dataclass(frozen=True)
class Split:
    """Indices of digits by what they are for; no digit is in two of them."""

    training: Indices
    unlabeled: Indices
    labeled: Indices


def split(count: int, *, training: int, unlabeled: int, labeled: int) -> Split:
    """Deal `count` digits out in one fixed random order. Raises ValueError if they are too few."""
    if training + unlabeled + labeled > count:
        raise ValueError(f"{training} + {unlabeled} + {labeled} is more than {count}")
    # RandomState rather than a Generator: its stream is the same in every version of NumPy
    order = np.random.RandomState(0).permutation(count)
    ends = np.cumsum([training, unlabeled, labeled])
    return Split(*(np.sort(part) for part in np.split(order, ends)[:3]))


def write_unlabeled(folder: Path, images: Images, numbers: Indices) -> None:
    """Write images as `folder/NUMBER.png`; the names tell nothing about the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, number in zip(images, numbers, strict=True):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{number:04}.png")


def write_labeled(
    folder: Path, images: Images, numbers: Indices, labels: Indices, classes: Sequence[str]
) -> None:
    """Write images as `folder/CLASS/NUMBER.png`."""
    for index, name in enumerate(classes):
        write_unlabeled(folder / name, images[labels == index], numbers[labels == index])
