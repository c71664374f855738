"""Small real models, built once, and shape annotations that are checked while tests run."""

import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES

os.environ["MOMA_DIGESTS"] = "off"  # nothing is left in the user's cache folder
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests run
torch.set_num_threads(1)  # tests run side by side
gc.set_threshold(100_000, 50, 1000)  # cycles among all of torch were a tenth of the time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in the background

_CHECKED = (
    "momacli.methods",
    "momacli.adaptation",
    "momacli.statistics.fisher",
    "momacli.statistics.grams",
    "momacli.alignment.descent",
    "momacli.alignment.early_stop",
    "momacli.alignment.encoding",
    "momacli.alignment.fit",  # not .settings, which refuses wrong values in its own words
    "momacli.alignment.mask",
    "momacli.alignment.objectives",
    "momacli.alignment.sharing",
    "momacli.alignment.transforms",
    "momacli.alignment.alignment",
    "momacli.features",
    "momacli.models.interface",
)
install_import_hook(_CHECKED, "beartype.beartype")  # before any of them is imported


_LONGEST = ("test_readme.py", "test_demo.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, which at the end would run alone."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session")
def vit_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model folders `base` and one for each task, as save_pretrained writes them.

    The base has no head. An expert is the base plus a small random step, with a head of its own.
    Shared by all tests: not to be written to.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("vit_folders")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 8,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    for task, classes in {"base": ("none",), **CLASSES}.items():
        config = transformers.ViTConfig(
            **sizes,
            id2label=dict(enumerate(classes)),
            label2id={label: i for i, label in enumerate(classes)},
        )
        transformers.ViTForImageClassification(config).save_pretrained(root / task)
        size = {"height": 8, "width": 8}
        transformers.ViTImageProcessor(size=size).save_pretrained(root / task)
    _as_experts(root)
    return root


def _as_experts(root: Path) -> None:
    """Make the models of one folder a base without a head and its fine-tuned copies."""
    base = load_file(root / "base" / "model.safetensors")
    encoder = {key: value for key, value in base.items() if not key.startswith("classifier.")}
    save_file(encoder, root / "base" / "model.safetensors", metadata={"format": "pt"})
    for seed, task in enumerate(CLASSES):
        file = root / task / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.02 * torch.randn(value.shape, generator=generator)
            for key, value in encoder.items()
        }
        save_file(load_file(file) | moved, file, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def vit_files(vit_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same models as bare files, `base.safetensors` and so on.

    One config.json beside them says what they are. Shared: not to be written to.
    """
    root = tmp_path_factory.mktemp("vit_files")
    for task in ("base", *CLASSES):
        shutil.copyfile(vit_folders / task / "model.safetensors", root / f"{task}.safetensors")
    shutil.copyfile(vit_folders / "base" / "config.json", root / "config.json")
    return root


@pytest.fixture(scope="session")
def vit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `unlabeled/<task>/*.png` and `labeled/<task>/<class>/*.png` of random images."""
    import numpy
    from PIL import Image

    root = tmp_path_factory.mktemp("vit_images")
    draw = numpy.random.default_rng(0)
    for task, classes in CLASSES.items():
        for number in range(40):
            label = classes[number % len(classes)]
            for folder in (root / "unlabeled" / task, root / "labeled" / task / label):
                folder.mkdir(parents=True, exist_ok=True)
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root
