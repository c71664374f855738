import json

import numpy
import pytest
from PIL import Image

from momacli.comparing.overlap import find_overlaps
from momacli.data.tables import Columns


@pytest.fixture
def images(tmp_path):
    """Twelve different images to adapt to, and as many others to be evaluated."""
    draw = numpy.random.default_rng(0)
    for folder in ("unlabeled/cats", "labeled/cats/lion"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    return tmp_path


def found(root):
    sources = [{"cats": root / side / "cats"} for side in ("unlabeled", "labeled")]
    return find_overlaps(*sources, Columns())


def test_other_images_of_the_same_size_are_no_overlap(images):
    assert found(images) == []


def test_the_same_bytes_under_another_name_are_found_and_named(images):
    (images / "labeled/cats/lion/x.png").write_bytes((images / "unlabeled/cats/3.png").read_bytes())

    (overlap,) = found(images)

    assert (overlap.task, overlap.shared, overlap.total) == ("cats", 1, 12)
    assert "unlabeled/cats/3.png" in str(overlap)
    assert "lion/x.png" in str(overlap)


def test_texts_are_compared_one_by_one_whatever_stands_beside_them(tmp_path):
    texts = {"seen": ["a", "b", "c"], "held": ["c", "d"]}
    for name, lines in texts.items():
        rows = [
            json.dumps({"text": text, "label": 0 if name == "held" else None}) for text in lines
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    (overlap,) = find_overlaps(
        {"t": tmp_path / "seen.jsonl"}, {"t": tmp_path / "held.jsonl"}, Columns()
    )

    assert (overlap.shared, overlap.total, overlap.example) == (1, 3, '"c"')
