import errno
import os
from pathlib import Path
from typing import Any

import pytest
from raw_files import open_files

from momacli.checkpoint import source as source_module
from momacli.checkpoint.source import Source
from momacli.errors import CheckpointError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(100)))
    os.utime(path, ns=(0, 0))
    return path


def read(source: Source, count: int, offset: int) -> bytes:
    buffer = bytearray(count)
    source.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def test_reading_gives_the_bytes_at_a_place_and_stops_where_the_file_does(path: Path):
    with Source(path) as source:
        assert read(source, 10, 20) == bytes(range(20, 30))
        assert source.read(1000, 90) == bytes(range(90, 100))
        assert source.read(10, 200) == b""


def test_a_long_read_is_made_of_several_calls(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source_module, "_PART", 7)

    with Source(path) as source:
        assert read(source, 100, 0) == bytes(range(100))


def test_short_reads_of_the_system_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch):
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:3]], at))

    with Source(path) as source:
        assert read(source, 100, 0) == bytes(range(100))


def test_a_file_cut_short_during_a_run_is_an_error_that_names_it(path: Path):
    with Source(path) as source:
        os.truncate(path, 50)

        with pytest.raises(CheckpointError, match=r"model\.safetensors changed .* 50 bytes") as e:
            read(source, 10, 45)
        with pytest.raises(CheckpointError, match="changed"):
            read(source, 10, 0)
    assert e.value.hint is not None


def test_a_file_written_to_during_a_run_is_an_error_even_where_the_change_is_elsewhere(path: Path):
    with Source(path) as source:
        with path.open("r+b") as file:
            file.write(b"!")

        with pytest.raises(CheckpointError, match=r"model\.safetensors changed"):
            read(source, 10, 50)


def test_a_file_that_grows_during_a_run_is_an_error(path: Path):
    with Source(path) as source:
        with path.open("ab") as file:
            file.write(b"!")

        with pytest.raises(CheckpointError, match="101 bytes long, before 100"):
            read(source, 10, 50)


def test_a_file_replaced_or_removed_during_a_run_is_read_on_as_it_was(path: Path, tmp_path: Path):
    (tmp_path / "other").write_bytes(b"other")
    with Source(path) as source:
        (tmp_path / "other").replace(path)
        assert read(source, 10, 0) == bytes(range(10))

        path.unlink()
        assert read(source, 10, 0) == bytes(range(10))


def test_an_unreadable_disk_is_an_error_that_names_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Source(path) as source:
        monkeypatch.setattr(os, "preadv", fail)

        with pytest.raises(CheckpointError, match=r"model\.safetensors .*Input/output error"):
            read(source, 10, 0)


def test_too_many_open_files_is_an_error_that_says_what_to_raise(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)

    with pytest.raises(CheckpointError, match="ulimit -n"):
        Source(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_error_that_names_it(path: Path):
    path.chmod(0)

    with pytest.raises(CheckpointError, match=r"model\.safetensors .*Permission denied"):
        Source(path)


@pytest.mark.parametrize(
    "name", ["missing", "file/under-a-file", "a\0b", "\ud800", "x" * 300, "loop"]
)
def test_a_path_that_leads_nowhere_is_an_error(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(CheckpointError, match=r"does not exist|cannot be read|not the name"):
        Source(tmp_path / name)


def test_a_broken_link_is_an_error_that_says_where_it_leads(tmp_path: Path):
    link = tmp_path / "model.safetensors"
    link.symlink_to("../../blobs/4d7a")

    with pytest.raises(CheckpointError, match=r"a link to \.\./\.\./blobs/4d7a, which does not"):
        Source(link)


def test_names_that_are_no_text_or_would_command_a_terminal_are_shown_escaped(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9\x1b[31m\n.safetensors")

    with pytest.raises(CheckpointError) as caught:
        Source(tmp_path / name)

    assert r"caf\xe9\x1b[31m\n.safetensors does not exist" in caught.value.message


def test_nothing_stays_open_after_an_error(tmp_path: Path):
    before = open_files()

    for _ in range(20):
        with pytest.raises(CheckpointError):
            Source(tmp_path)

    assert open_files() == before


def test_closing_twice_is_harmless(path: Path):
    source = Source(path)

    source.close()
    source.close()


def test_where_the_system_has_no_preadv_the_same_bytes_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(os, "preadv")
    namespace: dict[str, Any] = {"__name__": "without_preadv"}
    exec(compile(Path(source_module.__file__).read_text(), "source.py", "exec"), namespace)

    with namespace["Source"](path) as source:
        assert read(source, 10, 20) == bytes(range(20, 30))
        assert read(source, 100, 0) == bytes(range(100))


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="no system call tells what is in memory")
@pytest.mark.parametrize("there", [True, False])
def test_the_system_is_asked_to_read_ahead_what_it_has_not_in_memory(path, there, monkeypatch):
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(source_module, "_ADVISE", lambda _file, *rest: asked.append(rest[:2]))

    def tell(descriptor: int, buffers: list[Any], offset: int, flags: int = 0) -> int:
        assert (offset, flags) == (29, os.RWF_NOWAIT)
        if not there:
            raise BlockingIOError
        return 1

    with Source(path) as source:
        monkeypatch.setattr(os, "preadv", tell)
        source.expect(10, 20)

    assert asked == ([] if there else [(10, 20)])
