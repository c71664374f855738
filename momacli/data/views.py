"""More views of each image, where there are few: the image itself, then random crops of it.

A fine-tuned encoder says of a crop what is to be learned of it as well as of the image, so
among few a view is worth nearly as much as another image; among many it takes the place of a
better one. `python -m tests.benchmarks vision8 ... --methods A:sample=0.1:views=5`, with A for
task-arithmetic:lambda=0.1+moma:steps=100:batch-size=8 (45.7 merged, 60.2 fine-tuned), and the
like, by the number of images a task:

    views of each         1      4      5     10     50
    3 to 12 (1 %)       47.2                51.0   50.1
    31 to 120 (10 %)    54.0          55.2  55.0
    156 to 600 (50 %)   56.8   56.0
"""

import hashlib

import numpy as np
from PIL import Image

from momacli.data.reading import Views

ENOUGH, MOST = 300, 10
"""Images and views of a task that "auto" brings them to, and views of one that it takes."""

_SMALLEST = 0.7
"""The least side of a crop, as a share of the image's."""


def views_of_each(views: Views, images: int) -> int:
    """How many views of each of so many images there are to be."""
    if views != "auto":
        return views
    return max(1, min(MOST, -(-ENOUGH // max(1, images))))


def random_crop(image: Image.Image, key: str) -> Image.Image:
    """A part of the image of at least 0.7 of its width and height, in the same proportions.

    key: what the choice depends on, and on nothing else.
    """
    digest = hashlib.sha256(key.encode()).digest()
    chance = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    width, height = image.size
    share = chance.uniform(_SMALLEST, 1.0)
    wide, high = share * width, share * height
    left, top = chance.uniform(0, width - wide), chance.uniform(0, height - high)
    size = (max(1, round(wide)), max(1, round(high)))
    box = (left, top, left + wide, top + high)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)
