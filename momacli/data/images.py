"""Image files to tensors: decoded and prepared once, then at hand for every step.

What fits is kept in memory; the rest in one unnamed temporary file that is mapped.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from momacli.data.views import random_crop
from momacli.errors import DataError
from momacli.models.interface import Padding
from momacli.progress import Listener, Notice, Progress, ignore

MEMORY_BUDGET = 4 << 30
"""Bytes of prepared samples a task may keep in memory before they go to a temporary file."""

_CHUNK = 64  # images prepared together


@dataclass(frozen=True)
class Samples:
    """Prepared inputs of one task, in the order of `files`: all of them, then further views."""

    files: tuple[Path, ...]  # of each sample
    values: Tensor  # [N, ...]
    views: int = 1  # of each image; all first ones come first

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The samples of these numbers, as a model takes them."""
        return {"pixel_values": self.values[indices]}

    @property
    def preparation(self) -> dict[str, object]:
        """What was done to the files, for the key of a cache."""
        found: dict[str, object] = {"shape": list(self.values.shape[1:])}
        return found if self.views == 1 else found | {"views": self.views}

    @property
    def padding(self) -> Padding:
        """None is needed: all are of one size."""
        return Padding()


def load_images(
    files: Sequence[Path],
    prepare: Callable[[Sequence[Image.Image]], Tensor],
    *,
    strict: bool = False,
    views: int = 1,
    stage: str = "decoding",
    listener: Listener = ignore,
) -> Samples:
    """Decode and prepare image files, in order; unreadable ones are left out and named.

    strict: raise DataError at the first unreadable file instead.
    views: of each image, see `momacli.data.views`; which ones depends on its place alone.
    Raises DataError if none can be read.
    """
    kept: list[Path] = []
    failed: list[str] = []
    values: Tensor | None = None  # [views, files, ...]
    for chunk in _decoded(files):
        images = []
        for path, result in chunk:
            if isinstance(result, str):
                failed.append(f"{path}: {result}")
                if strict:
                    raise DataError(f"{path} cannot be read: {result}")
            else:
                kept.append(path)
                images.append(result)
        if images:
            first = len(kept) - len(images)
            for view in range(views):
                seen = images if view == 0 else _crops(images, first, view)
                prepared = prepare(seen)
                if values is None:
                    values = _allocate((views, len(files)), prepared)
                values[view, first : len(kept)] = prepared
        listener(Progress(stage, len(kept) + len(failed), len(files), "images"))
    if values is None:
        raise DataError(
            f"none of the {len(files)} images can be read", details=failed[:5] or ["no files"]
        )
    if failed:
        listener(Notice(f"left out {len(failed)} of {len(files)} images: {'; '.join(failed[:3])}"))
    there = values[:, : len(kept)].flatten(0, 1)
    return Samples(tuple(kept) * views, there, views)


def _crops(images: Sequence[Image.Image], first: int, view: int) -> list[Image.Image]:
    """One more view of each of the images that lie from a place on."""
    return [random_crop(image, f"{first + n}/{view}") for n, image in enumerate(images)]


def _decoded(
    files: Sequence[Path],
) -> Iterator[list[tuple[Path, Image.Image | str]]]:
    remaining = iter(files)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # a decoder's remarks on a file it reads in spite of all
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        while chunk := list(islice(remaining, _CHUNK)):
            yield list(zip(chunk, pool.map(_decode, chunk), strict=True))


def _decode(path: Path) -> Image.Image | str:
    """The image upright in RGB, or why it cannot be read.

    Of more pixels than Pillow takes for sane, none is decoded: the file may be tiny all the same.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
                scale = 257.0 if upright.mode.startswith("I;16") else _scale_of(upright)
                upright = upright.convert("F").point(lambda value: value / scale).convert("L")
            return upright.convert("RGB")
    except UnidentifiedImageError:
        return "not an image of a kind that can be read"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels, which may be meant to fill the memory"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # of damaged files, decoders raise whatever they run into
        return f"damaged: {error}"


def _scale_of(image: Image.Image) -> float:
    """What makes bytes of the numbers of an image whose type does not tell their range."""
    high = image.getextrema()[1]
    return 257.0 if isinstance(high, (int, float)) and high > 255 else 1.0


def _allocate(counts: tuple[int, ...], example: Tensor) -> Tensor:
    shape = (*counts, *example.shape[1:])
    size = prod(shape)
    if size * example.element_size() <= MEMORY_BUDGET:
        return torch.empty(shape, dtype=example.dtype)
    with tempfile.NamedTemporaryFile(prefix="moma-samples-") as file:
        file.truncate(size * example.element_size())
        flat = torch.from_file(file.name, shared=True, size=size, dtype=example.dtype)
    return flat.reshape(shape)
