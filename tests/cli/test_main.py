"""What every command has in common: help, errors, signals, and the three standard streams."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import momacli
from momacli.cli import commands
from momacli.cli.main import run

COMMANDS = [command.name for command in commands.app.registered_commands]


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """A base and an expert as files."""
    for name, value in {"base": 1.0, "x": 2.0}.items():
        save_file({"w": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    return [str(tmp_path / f"{name}.safetensors") for name in ("base", "x")]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line of shell in an empty folder, where `moma` is the command under test."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    command = tmp_path / "bin" / "moma"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m momacli "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def execute(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path / "here",
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return execute


# help


def test_no_help_imports_anything_heavy():
    heavy = ("torch", "transformers", "open_clip", "matplotlib", "numpy", "sklearn", "PIL")
    script = (
        "import sys; from momacli.cli.main import run\n"
        f"for command in {COMMANDS!r}: assert run([command, '--help']) == 0\n"
        "assert run(['--help']) == run([]) == run(['--version']) == run(['methods', 'ties']) == 0\n"
        "assert run(['merge', 'a', '--mehtod', 'ties']) == 2\n"
        f"print('heavy:', [name for name in {heavy!r} if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.endswith("heavy: []\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    status = run([command, "--help"])

    shown = capsys.readouterr().out
    assert status == 0
    assert f"Usage: moma {command}" in shown
    assert "\x1b" not in shown


def test_without_a_command_the_help_is_shown(capsys):
    assert run([]) == 0

    assert "Commands:" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert run(["--version"]) == 0

    assert capsys.readouterr().out == f"moma {momacli.__version__}\n"


# errors


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["mrge"], "no such command", "did you mean 'merge'"),
        (["absorb"], "missing argument", "see moma absorb --help"),
        (["merge", "x", "--methd", "ties"], "no such option", "--method"),
        (["merge", "x", "--seed", "one"], "invalid value for '--seed'", "see moma merge --help"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_the_right_one(arguments, error, hint, capsys):
    assert run(arguments) == 2

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert error in shown.err
    assert hint in shown.err.replace("Did", "did")


def test_an_error_is_a_line_its_details_and_a_hint(tmp_path, capsys):
    save_file({"w": torch.ones(3)}, tmp_path / "base.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    base, expert = str(tmp_path / "base.safetensors"), str(tmp_path / "x.safetensors")

    assert run(["merge", base, expert]) == 1

    error, detail, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: 1 tensor of the experts does not fit the base {base}"
    assert detail == "  x: w   expected F32[3], found F32[2]"
    assert hint.startswith("hint: ")


def test_a_wall_of_details_is_cut_before_it_hides_the_hint(tmp_path, capsys):
    save_file({f"w{i}": torch.ones(1) for i in range(100)}, tmp_path / "base.safetensors")
    save_file({"v": torch.ones(1)}, tmp_path / "x.safetensors")

    run(["merge", str(tmp_path / "base.safetensors"), str(tmp_path / "x.safetensors")])

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 43
    assert lines[-2] == "  … and 61 more"


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(tmp_path, capsys):
    assert run(["merge", "x=" + str(tmp_path / "\x1b[31mred\n.safetensors"), "--base", "b"]) == 1

    error, _ = capsys.readouterr().err.splitlines()
    assert "\x1b" not in error
    assert r"\x1b[31mred\n.safetensors does not exist" in error


def test_an_error_of_the_system_is_a_line_too(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr("momacli.cli.console.print_table", fail)

    assert run(["methods"]) == 1

    assert capsys.readouterr().err == "error: some/file: Permission denied\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_said_plainly(monkeypatch, capsys, error):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("momacli.cli.console.print_table", fail)

    assert run(["methods"]) == 1

    assert capsys.readouterr().err.startswith("error: not enough memory\n")


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("momacli.cli.console.print_table", fail)

    with pytest.raises(ZeroDivisionError):
        run(["methods"])


# signals


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_during_a_merge_ends_it_quietly_and_leaves_nothing(
    checkpoints, tmp_path, monkeypatch, capsys, number, status
):
    before = set(tmp_path.iterdir())
    staged = []

    def interrupt(_event: object) -> None:
        staged.extend(set(tmp_path.iterdir()) - before)
        os.kill(os.getpid(), number)

    @contextmanager
    def listening():
        yield interrupt

    monkeypatch.setattr("momacli.cli.listening.listening", listening)

    assert run(["merge", *checkpoints, "-o", str(tmp_path / "out.safetensors")]) == status

    assert len(staged) == 1  # the signal came while the output was being written
    assert set(tmp_path.iterdir()) == before
    assert capsys.readouterr() == ("", "")


def test_a_run_ends_with_all_it_printed_and_what_others_registered_for_its_end():
    program = """
import atexit, sys
from momacli.cli.main import main
atexit.register(print, "last words")
sys.argv = ["moma", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"moma {momacli.__version__}", "last words"]


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)

    run(["methods"])

    assert signal.getsignal(signal.SIGTERM) == before


# streams, seen from a shell


def test_a_reader_that_leaves_early_is_no_error_to_talk_about(shell):
    done = shell("{ moma methods; echo status $? >&2; } | true")

    assert done.stderr == "status 141\n"


def test_closed_streams_are_no_obstacle(shell):
    done = shell("moma methods ties <&- >&-; echo $?; moma methods tis 2>&-; echo $?")

    assert done.stdout == "0\n2\n"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_as_stdout_is_an_error(shell):
    done = shell("moma methods > /dev/full")

    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device\n")


def test_a_locale_without_the_letters_is_no_obstacle(shell):
    done = shell("PYTHONUTF8=0 PYTHONIOENCODING=ascii moma methods ties")

    assert done.returncode == 0
    assert done.stdout.isascii()
