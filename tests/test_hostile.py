"""Hostile files, faults and signals, as they meet the installed command."""

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_files import entry, open_files, raw
from safetensors.torch import save_file

from momacli.cli.main import run
from momacli.merge import merge

INSTALLED = Path(sys.executable).with_name("moma")
COMMAND = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "momacli"]

Moma = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a base, two experts, and a previous output that moma wrote."""
    generator = torch.Generator().manual_seed(0)
    base = {"a.weight": torch.randn(64, 64, generator=generator), "a.bias": torch.zeros(64)}
    save_file(base, tmp_path / "base.safetensors")
    for name in "xy":
        step = 0.1 * torch.randn(64, 64, generator=generator)
        save_file(
            {"a.weight": base["a.weight"] + step, "a.bias": step[0]},
            tmp_path / f"{name}.safetensors",
        )
    merge(
        [tmp_path / "x.safetensors", tmp_path / "y.safetensors"],
        base=tmp_path / "base.safetensors",
        output=tmp_path / "out.safetensors",
    )
    return tmp_path


@pytest.fixture
def moma(folder: Path) -> Moma:
    """Run the command in that folder."""

    def execute(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            **({"cwd": folder} | options),
        )

    return execute


def content_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def assert_refused(
    done: "subprocess.CompletedProcess[str]", folder: Path, before: dict[str, str], *words: str
) -> None:
    """The command failed with a few lines that hold these words, and changed nothing."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert all(word in done.stderr for word in words), done.stderr
    assert content_of(folder) == before


class Canary:
    """Leaves a file behind when its pickle is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_by_another_name_is_refused_and_never_loaded(folder, moma):
    (folder / "z.safetensors").write_bytes(pickle.dumps(Canary(folder / "it-ran")))
    before = content_of(folder)

    done = moma("merge", "base.safetensors", "x.safetensors", "z.safetensors", "-o", "new")

    assert_refused(done, folder, before, "z.safetensors", "pickle")


def limited_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))


def test_a_header_that_claims_more_than_there_is_costs_nothing(folder, moma):
    huge = entry(shape=(1 << 40,), offsets=(0, 1 << 42))
    (folder / "z.safetensors").write_bytes(raw({"a.weight": huge}, bytes(64)))
    before = content_of(folder)

    done = moma(
        "merge", "base.safetensors", "z.safetensors", "-o", "new", preexec_fn=limited_memory
    )

    assert_refused(done, folder, before, "z.safetensors", "a.weight")


def test_an_index_cannot_lead_out_of_its_folder(folder, moma):
    shards = folder / "shards"
    shards.mkdir()
    table = {"a.weight": "../x.safetensors", "a.bias": "../x.safetensors"}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    before = content_of(folder)

    done = moma("merge", "shards", "--base", "base.safetensors", "-o", "new")

    assert_refused(done, folder, before, "model.safetensors.index.json", "../x.safetensors")


def test_nan_is_refused_and_the_previous_output_stays(folder, moma):
    save_file(
        {"a.weight": torch.full((64, 64), torch.nan), "a.bias": torch.zeros(64)},
        folder / "z.safetensors",
    )
    before = content_of(folder)

    done = moma("merge", "base.safetensors", "z.safetensors", "-o", "out.safetensors")

    assert_refused(done, folder, before, "z.safetensors", "a.weight", "--allow-nonfinite")


def test_names_cannot_act_on_a_terminal(folder, moma):
    header = {"\x1b[2J\x07gone": entry(), "a.weight": entry(shape=(3,), offsets=(8, 20))}
    (folder / "z.safetensors").write_bytes(raw(header, bytes(20)))
    before = content_of(folder)

    done = moma("merge", "base.safetensors", "z.safetensors", "-o", "new")

    assert not set("\x1b\x07") & set(done.stderr)
    assert "gone" in done.stderr
    assert done.returncode == 1
    assert content_of(folder) == before


def small_files() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


def test_an_output_larger_than_the_system_allows_leaves_the_previous_one(folder, moma):
    before = content_of(folder)
    inputs = ("base.safetensors", "x.safetensors", "y.safetensors")

    done = moma(
        "merge", *inputs, "--method", "ties", "-o", "out.safetensors", preexec_fn=small_files
    )

    assert_refused(done, folder, before, "out.safetensors")


def test_a_second_run_is_told_and_a_stopped_one_leaves_the_previous_output(folder, moma):
    before = content_of(folder)
    inputs = ("base.safetensors", "x.safetensors", "y.safetensors")
    slow = ("--method", "wudi", "--set", "steps=10000000")
    first = subprocess.Popen(
        [*COMMAND, "merge", *inputs, *slow, "-o", "out.safetensors"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (folder / ".out.safetensors.moma.tmp").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = moma("merge", *inputs, "-o", "out.safetensors")
        first.send_signal(signal.SIGTERM)
        shown, said = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()

    assert second.returncode == 1
    assert second.stderr.startswith("error: ")
    assert "out.safetensors" in second.stderr
    assert first.returncode == 143
    assert shown == ""
    assert "Traceback" not in said
    assert content_of(folder) == before


def test_the_same_command_gives_the_same_bytes_whatever_is_around_it(folder, moma):
    moma("merge", "base.safetensors", "x.safetensors", "y.safetensors", "-o", "one.safetensors")
    time.sleep(0.01)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    other = {**os.environ, "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    inputs = [str(folder / f"{name}.safetensors") for name in ("y", "base", "x")]

    moma("merge", *inputs, "-o", "../two.safetensors", cwd=elsewhere, env=other)

    assert (folder / "one.safetensors").read_bytes() == (folder / "two.safetensors").read_bytes()


def test_all_conflicts_stand_in_one_report_before_anything_is_written(folder, moma):
    save_file({"a.weight": torch.zeros(64, 63), "b": torch.zeros(1)}, folder / "z.safetensors")
    before = content_of(folder)

    done = moma("merge", *(f"{name}.safetensors" for name in ("base", "x", "z")), "-o", "new")

    assert done.returncode == 1
    assert all(word in done.stderr for word in ("a.weight", "a.bias", "[64, 63]", "extra", "hint"))
    assert "Traceback" not in done.stderr
    assert content_of(folder) == before


def test_an_input_cut_short_during_the_run_is_an_error_that_names_it(folder):
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "x", "y"):
        large = {f"t{i:02}": torch.randn(1 << 20, generator=generator) for i in range(24)}
        save_file(large, folder / f"{name}.safetensors")
    arguments = ["merge", "base.safetensors", "x.safetensors", "y.safetensors"]
    running = subprocess.Popen(
        [*COMMAND, *arguments, "-o", "new.safetensors"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(folder.glob(".new.safetensors.*")):
        assert running.poll() is None
        time.sleep(0.001)
    running.send_signal(signal.SIGSTOP)
    os.truncate(folder / "x.safetensors", 1 << 20)
    running.send_signal(signal.SIGCONT)
    _, told = running.communicate(timeout=100)

    assert running.returncode == 1, told
    assert "x.safetensors" in told
    assert "Traceback" not in told
    assert not list(folder.glob("*new*"))
    assert not list(folder.glob(".new*"))


def test_an_image_that_cannot_be_read_is_left_out_by_name_or_refused(
    tmp_path, vit_folders, vit_images, capfd
):
    shutil.copytree(vit_images / "labeled" / "cats", tmp_path / "labeled" / "cats")
    broken = next((tmp_path / "labeled" / "cats").glob("*/*.png"))
    broken.write_bytes(broken.read_bytes()[:50])
    arguments = ["evaluate", str(vit_folders / "cats"), "--data", str(tmp_path / "labeled")]

    # in this process, where all that it takes is imported
    status = run(arguments)
    said = capfd.readouterr().err
    strict_status = run([*arguments, "--strict"])
    strictly_said = capfd.readouterr().err

    assert status == 0, said
    assert "1 of 40" in said
    assert broken.name in said
    assert strict_status == 1
    assert broken.name in strictly_said
    assert "Traceback" not in said + strictly_said


def test_an_input_that_changed_since_is_named_when_the_output_is_verified(folder, moma):
    same = moma("verify", "out.safetensors")
    save_file({"a.weight": torch.ones(64, 64), "a.bias": torch.ones(64)}, folder / "x.safetensors")
    before = content_of(folder)

    done = moma("verify", "out.safetensors")

    assert same.returncode == 0, same.stderr
    assert_refused(done, folder, before, "x.safetensors")


@pytest.mark.long
def test_two_hundred_merges_leave_no_file_open_or_behind(folder):
    inputs = [folder / f"{name}.safetensors" for name in ("base", "x", "y")]
    output = folder / "out.safetensors"
    merge(inputs, method="ties", output=output)
    before, names = open_files(), set(content_of(folder))

    for number in range(200):
        merge(inputs, method=("ties", "average", "iso-c")[number % 3], output=output)

    assert open_files() == before
    assert set(content_of(folder)) == names


@pytest.mark.long
def test_two_hundred_merges_leave_no_memory_behind(folder):
    rows = torch.randn(2000, 1000)
    for name in ("base", "x", "y"):
        save_file({"w": rows + 0.01 * torch.randn(rows.shape)}, folder / f"{name}.safetensors")
    inputs = [folder / f"{name}.safetensors" for name in ("base", "x", "y")]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        merge(inputs, method="ties", output=folder / "out.safetensors")
    before = resident()
    for _ in range(200):
        merge(inputs, method="ties", output=folder / "out.safetensors")

    assert resident() - before < 24 << 20  # three models; 200 merges read 600


@pytest.mark.long
def test_an_alignment_killed_at_random_moments_ends_with_the_same_bytes(
    vit_folders, vit_images, tmp_path
):
    def prepare(name: str) -> list[str]:
        place = tmp_path / name
        place.mkdir()
        shutil.copytree(vit_folders, place / "models")
        tasks = sorted(path for path in (place / "models").iterdir() if path.name != "base")
        merge(tasks, base=place / "models" / "base", output=place / "merged")
        return [
            *(*COMMAND, "align", "merged", "--data", str(vit_images / "unlabeled")),
            *("--steps", "300", "--batch-size", "4", "--checkpoint-every", "5", "-o", "aligned"),
        ]

    command = prepare("undisturbed")
    started = time.monotonic()
    subprocess.run(command, cwd=tmp_path / "undisturbed", check=True, capture_output=True)
    whole = time.monotonic() - started

    command = prepare("killed")
    draw = random.Random(0)
    for _ in range(5):
        run = subprocess.Popen(
            command,
            cwd=tmp_path / "killed",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(draw.uniform(0.3, 0.95) * whole)
        run.kill()
        run.wait()
    subprocess.run(command, cwd=tmp_path / "killed", check=True, capture_output=True)

    aligned = content_of(tmp_path / "killed" / "aligned")
    assert aligned == content_of(tmp_path / "undisturbed" / "aligned")
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"models", "merged", "aligned"}
