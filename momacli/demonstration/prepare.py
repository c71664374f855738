"""A folder with everything the commands of `moma demo` work on.

    base/                          pre-trained on upright digits
    experts/<task>/                fine-tuned copies of it, with a head of their own
    unlabeled/<task>/*.png         what alignment may look at
    labeled/<task>/<class>/*.png   what only evaluation sees
    moma-demo.json                 the settings, and a digest of all these files

The images a model is trained on are not written; they go through the same image processor,
which takes its numbers from the same file, as those that are.
"""

import contextlib
import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from momacli.checkpoint.staging import staged_file
from momacli.demonstration import digits
from momacli.demonstration.digits import TASKS, Images, Indices, Split
from momacli.demonstration.training import Schedule, train
from momacli.errors import OutputError
from momacli.models.preprocessing import ImagePreprocessor, image_preprocessor
from momacli.models.small_vit import (
    save_image_processor,
    save_small_vit,
    small_vit,
    with_new_head,
)
from momacli.progress import Listener, Notice, Progress, ignore

STAMP = "moma-demo.json"
_PARTS = ("base", "experts", "unlabeled", "labeled")
_SHIFTS = (-2, 0, 2)  # pixels; pre-training sees every digit at the nine places these make
_PATCH = digits.SIZE // 3  # nine patches an image
_DIGIT_NAMES = tuple("0123456789")

_PRE_TRAINING = Schedule(steps=600, batch_size=32, rate=2e-3)
_FINE_TUNING = Schedule(steps=250, batch_size=32, rate=5e-4)


@dataclass(frozen=True)
class Settings:
    """How many digits are for what, and how long is trained.

    Chosen so that two cores need less than a minute, experts get 97 % right on average, and
    task arithmetic with lambda 0.3 loses 20 to 30 points of it.
    """

    training: int = 797
    unlabeled: int = 500
    labeled: int = 500
    pre_training: Schedule = _PRE_TRAINING
    fine_tuning: Schedule = _FINE_TUNING


@dataclass(frozen=True)
class Prepared:
    """What lies in the folder now."""

    folder: Path
    tasks: tuple[str, ...]
    reused: bool  # it was there already


DEFAULTS = Settings()


def prepare(
    folder: Path, *, seed: int = 0, settings: Settings = DEFAULTS, listener: Listener = ignore
) -> Prepared:
    """Train the models and write the images, unless an earlier call did and they are unchanged.

    seed: of initial weights and the order of training samples; which digits are for what is
        always the same. The same seed gives the same files on one machine.

    What an interrupted call or one with other settings left is replaced. Raises OutputError if
    that would take files which did not come from here, or were changed since.
    """
    wanted = _as_json(seed, settings)
    tasks = tuple(task.name for task in TASKS)
    stamp = _read_stamp(folder)
    if stamp is None:
        _refuse_foreign(folder)
    elif stamp["files"] is not None:
        if stamp["files"] != _digest(folder):
            raise OutputError(
                f"the models or images in {folder} have changed since moma demo made them",
                hint="remove the folder to have it made anew, or name another one",
            )
        if stamp["settings"] == wanted:
            listener(Notice(f"reusing the models and images that are in {folder}"))
            return Prepared(folder, tasks, reused=True)
    _write_stamp(folder, {"settings": wanted, "files": None})
    for part in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / part)
    images, labels = digits.load()
    parts = digits.split(
        len(images),
        training=settings.training,
        unlabeled=settings.unlabeled,
        labeled=settings.labeled,
    )
    _write_images(folder, images, labels, parts, listener)
    _train_models(folder, images[parts.training], labels[parts.training], seed, settings, listener)
    _write_stamp(folder, {"settings": wanted, "files": _digest(folder)})
    return Prepared(folder, tasks, reused=False)


def _write_images(
    folder: Path, images: Images, labels: Indices, parts: Split, listener: Listener
) -> None:
    for done, task in enumerate(TASKS, start=1):
        seen, held_out = parts.unlabeled, parts.labeled
        digits.write_unlabeled(folder / "unlabeled" / task.name, task.draw(images[seen]), seen)
        digits.write_labeled(
            folder / "labeled" / task.name,
            task.draw(images[held_out]),
            held_out,
            task.labels(labels[held_out]),
            task.classes,
        )
        listener(Progress("writing images", done, len(TASKS), "tasks"))


def _train_models(
    folder: Path,
    images: Images,
    labels: Indices,
    seed: int,
    settings: Settings,
    listener: Listener,
) -> None:
    for place in ("base", *(f"experts/{task.name}" for task in TASKS)):
        save_image_processor(folder / place, image_size=digits.SIZE)
    to_pixels = image_preprocessor(folder / "base")

    own = _seed_of(seed, "base")
    base = small_vit(_DIGIT_NAMES, image_size=digits.SIZE, patch_size=_PATCH, seed=own)
    places = [digits.moved(images, down, right) for down in _SHIFTS for right in _SHIFTS]
    pixel_values = torch.cat([_pixels(place, to_pixels) for place in places])
    targets = torch.from_numpy(labels).repeat(len(places))
    schedule = settings.pre_training
    train(base, pixel_values, targets, schedule, seed=own, stage="pre-training", listener=listener)
    save_small_vit(base, folder / "base")

    for task in TASKS:
        own, stage = _seed_of(seed, task.name), f"fine-tuning {task.name}"
        expert = with_new_head(base, task.classes, seed=own)
        pixel_values = _pixels(task.draw(images), to_pixels)
        targets = torch.from_numpy(task.labels(labels))
        schedule = settings.fine_tuning
        train(expert, pixel_values, targets, schedule, seed=own, stage=stage, listener=listener)
        save_small_vit(expert, folder / "experts" / task.name)


def _pixels(images: Images, to_pixels: ImagePreprocessor) -> Tensor:
    return to_pixels([Image.fromarray(image.copy()).convert("RGB") for image in images])


def _seed_of(seed: int, what: str) -> int:
    """Return a seed of its own for each training."""
    return random.Random(f"{seed}/{what}").getrandbits(63)


def _as_json(seed: int, settings: Settings) -> dict[str, Any]:
    tasks = [[task.name, task.description, task.classes, task.class_of] for task in TASKS]
    content: dict[str, Any] = json.loads(
        json.dumps({"seed": seed, **asdict(settings), "tasks": tasks})
    )
    return content


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """What an earlier call left; None if there is nothing that can be read."""
    try:
        content = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) and {"settings", "files"} <= {*content} else None


def _write_stamp(folder: Path, content: dict[str, Any]) -> None:
    with staged_file(folder / STAMP) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _refuse_foreign(folder: Path) -> None:
    foreign = [part for part in _PARTS if (folder / part).exists()]
    if foreign:
        raise OutputError(
            f"{folder} holds {', '.join(foreign)}, which moma demo did not make",
            hint="name another folder",
        )


def _digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in the parts."""
    digest = hashlib.sha256()
    for part in _PARTS:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
