import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from momacli.data import images
from momacli.data.images import load_images
from momacli.errors import DataError
from momacli.progress import Notice


def prepare(pictures):
    return torch.stack([torch.from_numpy(np.array(picture)).float() for picture in pictures])


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def grey(value: int) -> np.ndarray:
    return np.full((4, 6), value, np.uint8)


def test_samples_keep_the_order_of_their_files(tmp_path):
    files = [save(tmp_path / f"{value:03}.png", grey(value)) for value in range(150)]

    samples = load_images(files, prepare)

    assert samples.files == tuple(files)
    assert samples.values[:, 0, 0, 0].tolist() == list(range(150))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb_of_the_same_brightness(tmp_path, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 6), 257 * 204, np.uint16))
    else:
        picture = Image.fromarray(grey(255 if mode == "1" else 204)).convert("RGB").convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    picture.save(path)

    values = load_images([path], prepare).values

    assert values.shape == (1, 4, 6, 3)
    assert (values - (255 if mode == "1" else 204)).abs().max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_dark_image_of_16_bits_stays_dark(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.full((4, 6), 200, np.uint16)).save(path)

    assert load_images([path], prepare).values.max() == 0


def test_a_palette_with_transparency_keeps_its_colors(tmp_path):
    picture = Image.fromarray(np.full((4, 6, 3), (10, 200, 90), np.uint8)).quantize(2)
    picture.save(tmp_path / "x.png", transparency=1)

    values = load_images([tmp_path / "x.png"], prepare).values

    assert (values - torch.tensor([10.0, 200.0, 90.0])).abs().max() <= 1


def test_an_image_is_turned_upright_by_its_exif_entry(tmp_path):
    array = np.zeros((4, 6, 3), np.uint8)
    array[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(array).save(tmp_path / "x.png", exif=exif)

    values = load_images([tmp_path / "x.png"], prepare).values[0]

    assert values.shape == (6, 4, 3)
    assert values[:, -1].min() == 255


def test_unreadable_images_are_left_out_counted_and_named(tmp_path):
    good = save(tmp_path / "a.png", grey(1))
    cut = tmp_path / "b.png"
    cut.write_bytes(good.read_bytes()[:40])
    text = tmp_path / "c.png"
    text.write_text("not an image")
    events = []

    samples = load_images([good, cut, text], prepare, listener=events.append)

    notices = [event.text for event in events if isinstance(event, Notice)]
    assert samples.files == (good,)
    assert len(samples.values) == 1
    assert len(notices) == 1
    assert "2 of 3" in notices[0]
    assert "b.png" in notices[0]


def test_strict_stops_at_the_first_unreadable_image(tmp_path):
    text = tmp_path / "c.png"
    text.write_text("not an image")

    with pytest.raises(DataError, match=r"c\.png"):
        load_images([text], prepare, strict=True)


def png_of(width: int, height: int) -> bytes:
    """A sound PNG of this size, all of one color: a few kB whatever the size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = zlib.compress(bytes(1 + (width + 7) // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])  # where Pillow only warns, where it refuses
def test_an_image_that_would_fill_the_memory_is_left_out(tmp_path, side, recwarn):
    good = save(tmp_path / "a.png", grey(1))
    bombs = [tmp_path / f"bomb{number}.png" for number in range(8)]
    for bomb in bombs:
        bomb.write_bytes(png_of(side, side))
    told = []

    samples = load_images([good, *bombs], prepare, listener=told.append)

    notices = [event.text for event in told if isinstance(event, Notice)]
    assert samples.files == (good,)
    assert notices[0].startswith(f"left out 8 of 9 images: {bombs[0]}: more than ")
    assert len(recwarn) == 0


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_images_damaged_anywhere_are_left_out_or_read_but_never_a_failure(tmp_path, format_):
    good = save(tmp_path / "a.png", grey(1))
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    content = save(tmp_path / f"b.{format_}", array).read_bytes()
    draw = np.random.default_rng(1)
    files = [good]
    for number in range(80):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.integers(len(damaged))] = draw.integers(256)
        cut = len(damaged) if number % 2 else draw.integers(len(damaged))
        files.append(tmp_path / f"{number}.{format_}")
        files[-1].write_bytes(damaged[:cut])

    def prepare_any(pictures):
        return torch.zeros(len(pictures), 1)

    samples = load_images(files, prepare_any)

    assert samples.files[0] == good


def test_a_suffix_that_is_wrong_does_not_matter_and_a_file_that_is_none_is_named(tmp_path):
    png = save(tmp_path / "a.jpg", grey(7), format="PNG")
    gone = tmp_path / "gone.png"
    gone.symlink_to(tmp_path / "nowhere.png")
    told = []

    samples = load_images([png, gone], prepare, listener=told.append)

    assert samples.values[0, 0, 0, 0] == 7
    assert told[-1].text == f"left out 1 of 2 images: {gone}: No such file or directory"


def test_only_unreadable_images_are_an_error(tmp_path):
    text = tmp_path / "c.png"
    text.write_text("not an image")

    with pytest.raises(DataError, match="none of the 1 images"):
        load_images([text], prepare)


def test_samples_beyond_the_memory_budget_are_mapped_and_equal(tmp_path, monkeypatch):
    files = [save(tmp_path / f"{value:03}.png", grey(value)) for value in range(70)]
    expected = load_images(files, prepare).values
    monkeypatch.setattr(images, "MEMORY_BUDGET", 100)

    found = load_images(files, prepare).values

    assert torch.equal(found, expected)
