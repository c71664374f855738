"""Suites of image tasks: experts fine-tuned from one small Vision Transformer or CLIP.

The base is pre-trained on all packs at once, of those that are tasks on a tenth of the training
side, with their labels: so it knows a little of everything, as CLIP does of what it is
fine-tuned on. (With two fifths, and 4,000 steps, it knew so much that experts were only 6 points
better and task arithmetic 4 points worse than they: 64.6, 70.5 and 66.5 on the validation split.)
An expert is fine-tuned on four fifths of its own pack, that tenth among them. The
last fifth, which no training saw, is what merges adapt to. Of the test side the first images are
evaluated, the next are the validation split. The seed is of fine-tuning and adaptation; the base,
and which images are for what, are always the same.

Patches are of 8 pixels: on two cores a base with patches of 4 sees a third of the images in the
same time, and knows less (20 percent of the test images against 32 after two minutes).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from momacli.demonstration.training import Schedule
from tests.benchmarks import training
from tests.benchmarks.cells import Cells, Lazily, code_of, digest_of_files
from tests.benchmarks.comparison import Suite, evaluated
from tests.benchmarks.images import ImagePack, Varied, read_images, source_of, write_images
from tests.benchmarks.vit import Sizes

PRE_TRAINING_ONLY = ("digits8", "dtd10", "flowers5", "pneumonia_mnist")
"""Packs that pre-training sees besides the tasks."""

_SHARES = (0.1, 0.8)  # of a training side: for pre-training, and for fine-tuning
_ORDER = 0  # seed of who sees which images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of these suites."""
    parser.add_argument("--data-root", type=Path, required=True, help="folder with vision/*.npz")
    parser.add_argument("--width", type=int, default=192, help="of the encoder")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--patch-size", type=int, default=8, help="pixels")
    parser.add_argument("--pre-training-steps", type=int, default=1500)
    parser.add_argument("--pre-training-batch-size", type=int, default=64)
    parser.add_argument("--pre-training-rate", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=240, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=32, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate of the encoder")
    parser.add_argument("--unlabeled", type=int, default=2000, help="images of each, at most")
    parser.add_argument("--test", type=int, default=400, help="images of each task, to evaluate")
    parser.add_argument("--validation", type=int, default=100, help="images of each, to choose by")
    parser.add_argument("--align-steps", type=int, default=100)
    parser.add_argument("--align-batch-size", type=int, default=8, help="of each task")


def prepare(
    name: str,
    tasks: Sequence[str],
    family: ModuleType,
    arguments: argparse.Namespace,
    seed: int,
    cells: Cells,
) -> Suite:
    """Write the images and pre-train the base, where that is not done yet.

    Experts are fine-tuned when they are asked for.

    tasks: the packs, each a task of its own.
    family: `vit` or `clip`.
    """
    packs = Packs(arguments.data_root, tasks)
    sizes = Sizes(arguments.width, arguments.layers, arguments.width // 64, arguments.patch_size)
    before = Schedule(
        arguments.pre_training_steps,
        arguments.pre_training_batch_size,
        arguments.pre_training_rate,
    )
    base = cells.get(
        "base",
        [
            packs.described(*packs.every),
            asdict(sizes),
            asdict(before),
            training.ARITHMETIC,
            code_of(read_images, Varied, family.pre_train, training.pre_train),
        ],
        lambda folder: family.pre_train(
            [packs.read(one) for one in packs.every], sizes, before, folder
        ),
    )
    schedule = Schedule(arguments.steps, arguments.batch_size, arguments.rate)
    tuning = {**asdict(schedule), "seed": seed}
    weights = digest_of_files(*family.files_of(base))

    def trained(kind: str, *wanted: str) -> Path:
        """The cell with the models of these tasks, that were trained together."""
        code = code_of(read_images, Varied, family.train_together, training.fine_tune)
        return cells.get(
            kind,
            [packs.described(*wanted), weights, tuning, training.ARITHMETIC, code],
            lambda folder: family.train_together(
                base, {task: packs.read(task) for task in wanted}, schedule, seed, folder
            ),
        )

    counts = {
        "unlabeled": arguments.unlabeled,
        "test": arguments.test,
        "validation": arguments.validation,
    }
    samples = cells.get(
        "images",
        [
            packs.described(*tasks),
            counts,
            code_of(read_images, write_images, _write_all, evaluated),
        ],
        lambda folder: _write_all(folder, [packs.read(task) for task in tasks], counts),
    )
    return Suite(
        name,
        base,
        Lazily(tuple(tasks), lambda task: trained("expert", task) / task),
        samples,
        {
            "training": tuning,
            "arithmetic": training.ARITHMETIC,
            "pre-training": asdict(before),
            "sizes": asdict(sizes),
            "packs": list(packs.every),
            "encoder": weights,
            **counts,
        },
        lambda: trained("together", *tasks),
        normalises=family.NORMALISES,
    )


class Packs:
    """The packs of a suite, read once they are needed."""

    def __init__(self, root: Path, tasks: Sequence[str]):
        """tasks: those that experts are fine-tuned on; the others are for pre-training."""
        self._root = root
        self._tasks = tasks
        self._read: dict[str, ImagePack] = {}
        self.every = (*tasks, *(name for name in PRE_TRAINING_ONLY if name not in tasks))

    def read(self, name: str) -> ImagePack:
        """A pack."""
        if name not in self._read:
            self._read[name] = read_images(self._root, name, _ORDER, self._shares(name))
        return self._read[name]

    def described(self, *names: str) -> list[object]:
        """What determines these packs."""
        files = digest_of_files(*(source_of(self._root, name) for name in names))
        return [names, files, [self._shares(name) for name in names], _ORDER]

    def _shares(self, name: str) -> tuple[float, float]:
        return _SHARES if name in self._tasks else (1.0, 1.0)


def _write_all(folder: Path, packs: Sequence[ImagePack], counts: Mapping[str, int]) -> None:
    """Write `unlabeled/`, `labeled/`, `validation/`, and `held-out/`: labeled without labels."""
    for pack in packs:
        cut = evaluated(len(pack.test), counts)
        test = pack.test.part(0, cut)
        chosen_by = pack.test.part(cut, cut + counts["validation"])
        unlabeled = pack.unlabeled.part(0, counts["unlabeled"])
        write_images(folder / "unlabeled" / pack.name, unlabeled)
        write_images(folder / "held-out" / pack.name, test)
        write_images(folder / "labeled" / pack.name, test, pack.classes)
        write_images(folder / "validation" / pack.name, chosen_by, pack.classes)
