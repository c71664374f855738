import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from raw_files import open_files
from safetensors.torch import load_file

from momacli.checkpoint import staging
from momacli.checkpoint.staging import staged_file, staged_folder
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import MomaError, OutputError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def put(target: Path, text: str, *, folder: bool = False) -> None:
    """Write an output in the staged way."""
    if not folder:
        with staged_file(target) as staged:
            staged.write_text(text)
        return
    with staged_folder(target) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "weights").write_text(text)


def write(target: Path, fill: Callable[[Path], None], *, folder: bool = False) -> None:
    """Let a function fill the staged file or folder."""
    with (staged_folder if folder else staged_file)(target) as staged:
        fill(staged)


def text_of(target: Path) -> str:
    return (target / "sub" / "weights" if target.is_dir() else target).read_text()


def staged_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.moma.tmp")


both_kinds = pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])


# old or new


@both_kinds
def test_an_output_appears_when_it_is_complete_and_nothing_else_does(folder: bool, tmp_path: Path):
    target = tmp_path / "merged"

    with (staged_folder if folder else staged_file)(target) as staged:
        assert not target.exists()
        assert staged.parent == tmp_path
        assert staged.name == ".merged.moma.tmp"

    assert list(tmp_path.iterdir()) == [target]


@both_kinds
def test_an_existing_output_is_replaced(folder: bool, tmp_path: Path):
    target = tmp_path / "merged"

    for text in ("old", "new"):
        put(target, text, folder=folder)

    assert text_of(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_only_the_old_folder_held_goes_with_it(tmp_path: Path):
    put(tmp_path / "merged", "old", folder=True)
    (tmp_path / "merged" / "other").touch()

    put(tmp_path / "merged", "new", folder=True)

    assert not (tmp_path / "merged" / "other").exists()


@both_kinds
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MomaError])
def test_after_an_exception_the_old_output_is_there_and_nothing_else(
    error: type[BaseException], folder: bool, tmp_path: Path
):
    target = tmp_path / "merged"
    put(target, "old", folder=folder)
    before = open_files()

    def stop(staged: Path) -> None:
        (staged / "half" if folder else staged).write_text("half")
        raise error("stop")

    with pytest.raises(error):
        write(target, stop, folder=folder)

    assert text_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]
    assert open_files() == before


@both_kinds
def test_folders_on_the_way_are_made_and_go_again_after_an_exception(folder: bool, tmp_path: Path):
    target = tmp_path / "a" / "b" / "merged"
    (tmp_path / "a").mkdir()

    with pytest.raises(ZeroDivisionError), (staged_folder if folder else staged_file)(target):
        _ = 1 / 0

    assert list((tmp_path / "a").iterdir()) == []
    put(target, "new", folder=folder)
    assert text_of(target) == "new"


@both_kinds
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
def test_an_output_has_the_permissions_that_the_user_asks_for(
    mask: int, folder: bool, tmp_path: Path
):
    before = os.umask(mask)
    try:
        put(tmp_path / "merged", "text", folder=folder)
    finally:
        os.umask(before)

    expected = (0o777 if folder else 0o666) & ~mask
    assert (tmp_path / "merged").stat().st_mode & 0o777 == expected


@both_kinds
@pytest.mark.parametrize("name", ["a[1]*?.safetensors", "ü💥", "-", "x" * 200, "ü" * 127, " "])
def test_a_target_may_have_any_name(name: str, folder: bool, tmp_path: Path):
    for text in ("old", "new"):
        put(tmp_path / name, text, folder=folder)

    assert text_of(tmp_path / name) == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_data_is_on_disk_before_it_has_its_name_and_the_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[object] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        events.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)

    put(tmp_path / "merged", "text")

    assert events == [(tmp_path / "merged").stat().st_ino, "rename", tmp_path.stat().st_ino]


def test_every_file_of_a_folder_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path / "merged", "old", folder=True)
    synced: list[int] = []
    renamed: list[int] = []
    fsync, exchange = os.fsync, staging._exchange

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def swap(staged: Path, place: Path) -> bool:
        renamed.extend(synced)
        return exchange(staged, place)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(staging, "_exchange", swap)

    put(tmp_path / "merged", "new", folder=True)

    target = tmp_path / "merged"
    parts = {path.stat().st_ino for path in (target, target / "sub", target / "sub" / "weights")}
    assert parts <= set(renamed)
    assert synced[-1] == tmp_path.stat().st_ino


@linux_only
def test_a_folder_is_never_missing_while_it_is_replaced(tmp_path: Path):
    target = tmp_path / "merged"
    put(target, "0", folder=True)
    missing, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not target.is_dir():
                missing.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(60):
            put(target, str(number), folder=True)
    finally:
        done.set()
        watcher.join()

    assert missing == []
    assert text_of(target) == "59"


@both_kinds
def test_a_linked_output_is_replaced_where_the_link_leads(folder: bool, tmp_path: Path):
    """As with the shell's `>`: the link stays, and the disk it leads to takes the data."""
    (tmp_path / "large_disk").mkdir()
    put(tmp_path / "large_disk" / "merged", "old", folder=folder)
    link = tmp_path / "merged"
    link.symlink_to("large_disk/merged")

    put(link, "new", folder=folder)

    assert link.is_symlink()
    assert text_of(tmp_path / "large_disk" / "merged") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "merged"]
    assert [path.name for path in (tmp_path / "large_disk").iterdir()] == ["merged"]


@both_kinds
def test_an_output_linked_to_nothing_yet_is_made_where_the_link_leads(folder: bool, tmp_path: Path):
    (tmp_path / "merged").symlink_to("elsewhere/merged")

    put(tmp_path / "merged", "new", folder=folder)

    assert (tmp_path / "merged").is_symlink()
    assert text_of(tmp_path / "elsewhere" / "merged") == "new"


def test_a_name_of_its_own_is_not_replaced_for_others_who_have_it(tmp_path: Path):
    """A hard link or a reader keeps the old content: nothing is written in place."""
    put(tmp_path / "merged", "old")
    os.link(tmp_path / "merged", tmp_path / "kept")

    put(tmp_path / "merged", "new")

    assert (tmp_path / "kept").read_text() == "old"


# places that cannot be written to


@pytest.mark.parametrize("kind", ["fifo", "device", "socket", "folder"])
def test_what_is_no_file_is_neither_replaced_by_a_file_nor_waited_for(kind: str, tmp_path: Path):
    target = tmp_path / "out"
    if kind == "device":
        target = Path("/dev/null")
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        import socket

        with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)  # a socket's path is short
            made.bind("out")
    before = target.lstat()

    with pytest.raises(OutputError, match=f"{target} is a "), staged_file(target):
        pytest.fail("the block was entered")

    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not list(target.parent.glob(".*.moma.*"))


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path):
    put(tmp_path / "merged", "old")

    with pytest.raises(OutputError, match="is a file, where a folder"):
        put(tmp_path / "merged", "new", folder=True)

    assert text_of(tmp_path / "merged") == "old"


@pytest.mark.parametrize("name", [".", "..", "", "/"])
def test_the_folder_one_is_in_is_not_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(OutputError, match="cannot be replaced as a whole"):
        put(Path(name), "text", folder=True)
    with pytest.raises(OutputError):
        put(Path(name), "text")

    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@both_kinds
def test_the_folder_one_is_in_may_be_gone(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()

    put(tmp_path / "merged", "text", folder=folder)
    with pytest.raises(OutputError, match="No such file or directory"):
        put(Path("merged"), "text", folder=folder)

    assert text_of(tmp_path / "merged") == "text"


@both_kinds
def test_a_file_where_a_folder_would_have_to_be_is_named(folder: bool, tmp_path: Path):
    (tmp_path / "a").write_text("file")

    with pytest.raises(OutputError, match=rf"merged cannot be .*Not a directory \({tmp_path}/a\)"):
        put(tmp_path / "a" / "b" / "merged", "text", folder=folder)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(
    ("folder", "module", "call"),
    [
        (False, os, "open"),
        (False, os, "fsync"),
        (False, os, "replace"),
        (True, os, "open"),
        (True, os, "fsync"),
        (True, staging, "_exchange"),
    ],
)
def test_whatever_the_system_refuses_leaves_the_old_output_and_nothing_else(
    folder: bool,
    module: object,
    call: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    target = tmp_path / "merged"
    put(target, "old", folder=folder)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, call, fail)
    with pytest.raises(OutputError, match=f"merged cannot be .*: {os.strerror(number)}"):
        put(target, "new", folder=folder)
    monkeypatch.undo()

    assert text_of(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_closed_pipe_in_the_block_is_not_the_outputs_fault(tmp_path: Path):
    with pytest.raises(BrokenPipeError), staged_file(tmp_path / "merged"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_file_at_fault_in_the_block_is_named(tmp_path: Path):
    with pytest.raises(OutputError, match=r"merged cannot be written: No such .*vocab\.txt\)"):
        write(tmp_path / "merged", lambda _: (tmp_path / "vocab.txt").unlink())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o555)

    with pytest.raises(OutputError, match="Permission denied"):
        put(tmp_path / "locked" / "merged", "text")


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, as root has outside of most containers."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff")), 0)
    return bool(effective >> 21 & 1)


mounts = pytest.mark.skipif(
    not may_mount(),
    reason="mounting a file system takes CAP_SYS_ADMIN; limits on files are tried without it",
)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "moma-test", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def write_tensor(target: Path, elements: int) -> None:
    with (
        staged_file(target) as staged,
        CheckpointWriter(staged, [TensorSpec("a", "F32", (elements,))], {}) as writer,
    ):
        writer.append("a", torch.ones(elements))


@mounts
@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk_leaves_the_old_output_and_nothing_else(
    reserves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        write_tensor(disk / "m.safetensors", 10)
        if not reserves:
            monkeypatch.delattr(os, "posix_fallocate")

        with pytest.raises(OutputError, match=r"m\.safetensors cannot .*: No space left") as caught:
            write_tensor(disk / "m.safetensors", 1 << 20)

        assert not reserves or "4194384 bytes needed" in caught.value.message
        assert [path.name for path in disk.iterdir()] == ["m.safetensors"]
        assert load_file(disk / "m.safetensors")["a"].tolist() == [1] * 10
        write_tensor(disk / "m.safetensors", 1 << 10)  # the space was given back


@mounts
def test_a_full_disk_under_a_folder_leaves_the_old_output_and_nothing_else(tmp_path: Path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        put(disk / "merged", "old", folder=True)

        with pytest.raises(OutputError, match="merged cannot be written: No space left"):
            put(disk / "merged", "new" * (1 << 20), folder=True)

        assert [path.name for path in disk.iterdir()] == ["merged"]
        assert text_of(disk / "merged") == "old"


@mounts
def test_a_read_only_disk_is_an_error_before_any_work(tmp_path: Path):
    with (
        mounted(tmp_path / "disk", "ro") as disk,
        pytest.raises(OutputError, match="Read-only file system"),
        staged_file(disk / "m"),
    ):
        pytest.fail("the block was entered")


@mounts
def test_a_mounted_folder_is_not_replaced_after_the_work_but_refused_before(tmp_path: Path):
    """A container's /out cannot be renamed."""
    with mounted(tmp_path / "out", "size=1m") as disk:
        with pytest.raises(OutputError, match="cannot be replaced"), staged_folder(disk):
            pytest.fail("the block was entered")
        put(disk / "merged", "text", folder=True)


@pytest.mark.parametrize("reserves", [True, False])
def test_a_limit_on_the_size_of_files_leaves_the_old_output_and_nothing_else(
    reserves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_tensor(tmp_path / "m.safetensors", 10)
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"m\.safetensors cannot .*: File too large"):
            write_tensor(tmp_path / "m.safetensors", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert load_file(tmp_path / "m.safetensors")["a"].tolist() == [1] * 10


# several runs


@both_kinds
def test_a_second_run_to_the_same_output_is_told_at_once_and_disturbs_nothing(
    folder: bool, tmp_path: Path
):
    stage = staged_folder if folder else staged_file
    target = tmp_path / "merged"

    with stage(target) as staged:
        (staged / "f" if folder else staged).write_text("first")
        with pytest.raises(OutputError, match="merged is being written by another run"):
            put(target, "second", folder=folder)
        with pytest.raises(OutputError, match="another run"):
            put(target, "second", folder=not folder)
        put(tmp_path / "other", "undisturbed", folder=folder)

    assert (target / "f" if folder else target).read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "other"]


@both_kinds
@pytest.mark.parametrize("left_folder", [False, True], ids=["file left", "folder left"])
def test_what_a_killed_run_left_is_removed_by_the_next_to_that_output_only(
    left_folder: bool, folder: bool, tmp_path: Path
):
    for name in ("merged", "other"):
        left = staged_name(tmp_path / name)
        if left_folder:
            (left / "sub").mkdir(parents=True)
            (left / "sub" / "half").write_text("half")
        else:
            left.write_text("half")

    put(tmp_path / "merged", "new", folder=folder)

    assert text_of(tmp_path / "merged") == "new"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".other.moma.tmp", "merged"]


def test_a_link_where_the_output_would_be_staged_is_not_followed(tmp_path: Path):
    (tmp_path / "victim").write_text("precious")
    staged_name(tmp_path / "merged").symlink_to("victim")

    with pytest.raises(OutputError, match=r"\.merged\.moma\.tmp is in the way"):
        put(tmp_path / "merged", "new")

    assert (tmp_path / "victim").read_text() == "precious"


@both_kinds
def test_of_many_runs_at_once_each_writes_all_or_says_why_not(folder: bool, tmp_path: Path):
    target = tmp_path / "merged"
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def run(text: str) -> None:
        start.wait()
        for _ in range(10):
            try:
                put(target, text * 1000, folder=folder)
                outcomes.append("written")
            except OutputError as error:
                outcomes.append(error.message.partition("merged ")[2])

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(outcomes) <= {"written", "is being written by another run"}
    assert "written" in outcomes
    assert len(set(text_of(target))) == 1
    assert len(text_of(target)) == 1000
    assert list(tmp_path.iterdir()) == [target]


def test_without_locks_a_leftover_is_not_touched_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(staging, "_lock", lambda _: None)
    put(tmp_path / "merged", "old")
    put(tmp_path / "merged", "new")
    staged_name(tmp_path / "merged").write_text("half")

    with pytest.raises(OutputError, match=r"hint: if there is none, remove .*\.merged\.moma\.tmp"):
        put(tmp_path / "merged", "newer")

    assert text_of(tmp_path / "merged") == "new"
    assert staged_name(tmp_path / "merged").read_text() == "half"


@both_kinds
def test_what_another_put_in_its_place_is_not_taken_for_the_output(folder: bool, tmp_path: Path):
    """Where two machines share a disk but no locks, one may take the other for dead."""
    target = tmp_path / "merged"
    put(target, "old", folder=folder)

    def take_away(staged: Path) -> None:
        if folder:
            staged.rename(tmp_path / "elsewhere")
            staged.mkdir()
        else:
            staged.rename(tmp_path / "elsewhere")
            staged.write_text("half")

    with pytest.raises(OutputError, match="was taken away"):
        write(target, take_away, folder=folder)

    assert text_of(target) == "old"


# where folders cannot be exchanged


def test_without_an_exchange_the_old_folder_is_set_aside_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)

    for text in ("old", "new"):
        put(tmp_path / "merged", text, folder=True)

    assert text_of(tmp_path / "merged") == "new"
    assert list(tmp_path.iterdir()) == [tmp_path / "merged"]


def test_without_an_exchange_a_failed_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path / "merged", "old", folder=True)
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)
    rename = Path.rename

    def fail(self: Path, new: Path) -> Path:
        if self.name == ".merged.moma.tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, new)

    monkeypatch.setattr(Path, "rename", fail)

    with pytest.raises(OutputError, match="Input/output error"):
        put(tmp_path / "merged", "new", folder=True)

    assert text_of(tmp_path / "merged") == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "merged"]


@pytest.mark.parametrize("renamed", [False, True], ids=["before the second", "after the second"])
def test_a_run_killed_between_two_renames_loses_nothing(renamed: bool, tmp_path: Path):
    target = tmp_path / "merged"
    put(tmp_path / ".merged.moma.old", "old", folder=True)
    put(target if renamed else staged_name(target), "new", folder=True)

    with pytest.raises(ZeroDivisionError), staged_folder(target):
        _ = 1 / 0

    assert text_of(target) == ("new" if renamed else "old")
    assert list(tmp_path.iterdir()) == [target]


# killed runs

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from momacli.checkpoint.staging import staged_file, staged_folder

folder, is_folder, rounds = Path(sys.argv[1]), sys.argv[2] == "folder", int(sys.argv[3])
draw = random.Random(int(sys.argv[4]))
target = folder / "merged"

def write(letter):
    if not is_folder:
        with staged_file(target) as staged, staged.open("wb", buffering=0) as file:
            for _ in range(64):
                file.write(letter * 4096)
        return
    with staged_folder(target) as staged:
        for name in "abcd":
            (staged / name).mkdir()
            (staged / name / "weights").write_bytes(letter * 65536)

def found():
    if not is_folder:
        return target.read_bytes()
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "c", "d"]
    return b"".join((target / name / "weights").read_bytes() for name in "abcd")

write(b"0")
killed = 0
for number in range(rounds):
    child = os.fork()
    if child == 0:
        while True:
            write(bytes([65 + number % 26]))
    time.sleep(draw.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += len(list(folder.iterdir())) > 1
    content = found()
    assert len(content) == 262144 and len(set(content)) == 1, (number, set(content))
write(b"1")
assert set(found()) == set(b"1")
assert [path.name for path in folder.iterdir()] == ["merged"], list(folder.iterdir())
print(killed)
"""
"""Forks writers and kills them; the output is whole after each, and the next run cleans up."""


def kill_writers(folder: bool, rounds: int, seed: int, place: Path) -> int:
    """Run the script; returns after how many kills something half-written was left."""
    kind = "folder" if folder else "file"
    command = [sys.executable, "-c", KILLED, str(place), kind, str(rounds), str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout)


@linux_only
@both_kinds
def test_a_run_killed_at_any_moment_leaves_the_old_output_or_the_new(folder: bool, tmp_path: Path):
    assert kill_writers(folder, 40, 0, tmp_path) > 0


@linux_only
@pytest.mark.long
@both_kinds
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_any_of_a_thousand_moments_leaves_the_old_output_or_the_new(
    seed: int, folder: bool, tmp_path: Path
):
    assert kill_writers(folder, 1000, seed + 1, tmp_path) > 100


ALIVE = """
import sys
from pathlib import Path
from momacli.checkpoint.staging import staged_file
with staged_file(Path(sys.argv[1])) as staged:
    staged.write_text("alive")
    print("ready", flush=True)
    sys.stdin.read()
"""


@linux_only
def test_what_a_live_run_stages_is_left_alone_by_another_process(tmp_path: Path):
    target = tmp_path / "merged"
    live = subprocess.Popen(
        [sys.executable, "-c", ALIVE, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert live.stdout is not None
    assert live.stdout.readline() == "ready\n"

    with pytest.raises(OutputError, match="being written by another run"):
        put(target, "second")
    live.communicate("")

    assert live.returncode == 0
    assert text_of(target) == "alive"
    assert list(tmp_path.iterdir()) == [target]
