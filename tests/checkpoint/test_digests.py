import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from momacli.checkpoint import digests
from momacli.checkpoint.digests import FileState, known_digest, remember_digest
from momacli.checkpoint.reader import Checkpoint


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that digests are remembered in, of files just written too."""
    monkeypatch.setenv("MOMA_DIGESTS", str(tmp_path / "digests"))
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    return tmp_path / "digests"


def write(path: Path, value: float) -> Path:
    save_file({"w": torch.full((4,), value)}, path)
    return path


def digest_of(path: Path) -> str:
    with Checkpoint.open(path) as checkpoint:
        return checkpoint.sha256()[path.name]


def test_a_digest_is_remembered_and_no_byte_is_read_for_it_again(memory, tmp_path):
    file = write(tmp_path / "x.safetensors", 1.0)

    first = digest_of(file)

    assert known_digest(FileState.of(file.stat())) == first
    with Checkpoint.open(file) as checkpoint:
        checkpoint.start_hash()
        assert checkpoint.files[0]._hash.length == 0
        assert checkpoint.sha256() == {file.name: first}


def test_a_file_written_to_in_place_is_hashed_again_even_with_its_old_time(memory, tmp_path):
    file = write(tmp_path / "x.safetensors", 1.0)
    digest_of(file)
    before = file.stat()

    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x40")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert digest_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_was_written_a_moment_ago_is_not_remembered(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", 3600.0)

    digest_of(write(tmp_path / "x.safetensors", 1.0))

    assert not memory.exists()


def test_off_remembers_nothing(memory, tmp_path, monkeypatch):
    monkeypatch.setenv("MOMA_DIGESTS", "off")

    digest_of(write(tmp_path / "x.safetensors", 1.0))

    assert not memory.exists()


@pytest.mark.parametrize("text", ["", "1 2 3", "\xff", "{state} " + "g" * 64, "{state} abc"])
def test_a_record_that_makes_no_sense_is_as_none(memory, tmp_path, text):
    file = write(tmp_path / "x.safetensors", 1.0)
    expected = digest_of(file)
    state = FileState.of(file.stat())
    (record,) = memory.iterdir()

    words = " ".join(map(str, (state.device, state.inode, state.size, state.modified)))
    record.write_text(text.replace("{state}", f"{words} {state.changed}"), encoding="latin-1")

    assert known_digest(state) is None
    assert digest_of(file) == expected


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOMA_DIGESTS", str(tmp_path / "file" / "below"))
    state = FileState(1, 2, 3, 4, 5)

    remember_digest(state, "0" * 64)

    assert known_digest(state) is None
