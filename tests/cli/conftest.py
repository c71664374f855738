"""What tests of commands share: the folder they work in, and how a command refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from momacli.cli.main import run


@pytest.fixture
def place(made, monkeypatch) -> Path:
    """The folder that a module's fixture `made` has prepared, with a cache of its own."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    return made


@pytest.fixture
def refused(capfd) -> Callable[..., tuple[int, str]]:
    """Runs what cannot work; returns its status and its error, behind which stands the way out.

    It says so on stderr alone, after notes at most, and writes nothing here.
    """

    def refuse(*arguments: str) -> tuple[int, str]:
        before = sorted(Path().iterdir())
        status = run([*arguments])
        out, err = capfd.readouterr()
        notes, error, rest = err.partition("error: ")
        assert error
        assert out == ""
        assert all(line.startswith("note: ") for line in notes.splitlines())
        assert "Traceback" not in err
        assert sorted(Path().iterdir()) == before
        return status, rest

    return refuse
