"""Packs of small images: read, dealt out by what they are for, written as folders, varied.

The data root has `vision/NAME.npz`: `x_train` and `x_test` (uint8, [N, H, W, 3]), `y_train` and
`y_test` (whole numbers), and `classes` (names).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from momacli.data.order import in_rounds

MIRRORED = {"aid", "cifar10", "dtd10", "fashion_mnist", "flowers5", "scenes15"}
"""Packs whose images mean the same in a mirror."""

_SHIFT = 3  # pixels that an image is moved by at most, in training


@dataclass(frozen=True)
class Images:
    """Images with the numbers of their classes."""

    pixels: NDArray[np.uint8]  # [N, H, W, 3]
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "Images":
        """Those from `start` up to `stop`."""
        return Images(self.pixels[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class ImagePack:
    """One data set, its training side in an order drawn by the seed and cut in three.

    pre_training: the first images of `training`, which pre-training sees with their labels.
    training: the images that an expert is fine-tuned on.
    unlabeled: the rest, which no training sees.
    """

    name: str
    classes: Sequence[str]
    pre_training: Images
    training: Images
    unlabeled: Images
    test: Images


def source_of(root: Path, name: str) -> Path:
    """The file of a pack."""
    return root / "vision" / f"{name}.npz"


def read_images(root: Path, name: str, seed: int, shares: tuple[float, float]) -> ImagePack:
    """A pack; `shares` of its training side are for pre-training and for fine-tuning.

    A slash in the name of a class, which no folder can have, becomes a dash.
    """
    with np.load(source_of(root, name)) as file:
        content = {key: file[key] for key in file.files}
    sides = {}
    for side in ("train", "test"):
        order = np.random.default_rng(seed).permutation(len(content[f"y_{side}"]))
        labels = content[f"y_{side}"].astype(np.int64)
        sides[side] = Images(content[f"x_{side}"][order], labels[order])
    count = len(sides["train"])
    first, second = (round(share * count) for share in shares)
    return ImagePack(
        name,
        [str(one).replace("/", "-") for one in content["classes"]],
        sides["train"].part(0, first),
        sides["train"].part(0, second),
        sides["train"].part(second, count),
        sides["test"],
    )


def write_images(folder: Path, images: Images, classes: Sequence[str] | None = None) -> None:
    """Write `folder/NUMBER.png`, or with names of classes `folder/CLASS/NUMBER.png`."""
    folder.mkdir(parents=True)
    for name in classes or ():
        (folder / name).mkdir()
    for number, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        place = folder if classes is None else folder / classes[label]
        Image.fromarray(pixels).save(place / f"{number:05}.png")


def values_of(pixels: NDArray[np.uint8]) -> Tensor:
    """What a Vision Transformer takes: [N, 3, H, W] from -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Varied:
    """Endless batches of images that are moved by a few pixels and, some of them, mirrored."""

    images: Images
    mirrored: NDArray[np.bool_]  # [N]: whether an image's mirror image is of the same class

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixel values and labels; every image once before any comes twice."""
        generator = torch.Generator().manual_seed(seed)
        chance = np.random.default_rng(seed)
        for picked in in_rounds(len(self.images), size, generator):
            numbers = picked.numpy()
            pixels = self.images.pixels[numbers]
            flipped = self.mirrored[numbers] & (chance.random(len(numbers)) < 0.5)
            pixels[flipped] = pixels[flipped, :, ::-1]
            yield values_of(_moved(pixels, chance)), torch.from_numpy(self.images.labels[numbers])


def _moved(pixels: NDArray[np.uint8], chance: np.random.Generator) -> NDArray[np.uint8]:
    """Each image moved by whole pixels of its own; what comes in repeats the edge."""
    margin = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    larger = np.pad(pixels, margin, mode="edge")
    height, width = pixels.shape[1:3]
    result = np.empty_like(pixels)
    for index, (down, right) in enumerate(chance.integers(0, 2 * _SHIFT + 1, (len(pixels), 2))):
        result[index] = larger[index, down : down + height, right : right + width]
    return result


def varied(pack: ImagePack) -> Varied:
    """What an expert is fine-tuned on."""
    return Varied(pack.training, _mirrored(pack, pack.training))


def varied_together(packs: Sequence[ImagePack]) -> Varied:
    """What packs have for pre-training, with the classes of one numbered after another's."""
    starts = np.cumsum([0, *(len(pack.classes) for pack in packs[:-1])])
    parts = [pack.pre_training for pack in packs]
    labels = [part.labels + start for part, start in zip(parts, starts, strict=True)]
    return Varied(
        Images(np.concatenate([part.pixels for part in parts]), np.concatenate(labels)),
        np.concatenate([_mirrored(pack, pack.pre_training) for pack in packs]),
    )


def _mirrored(pack: ImagePack, images: Images) -> NDArray[np.bool_]:
    return np.full(len(images), pack.name in MIRRORED)
