"""Real processes: their memory, their progress, their errors and their end."""

import signal
import subprocess
import sys

import numpy
import pytest
from safetensors.numpy import save_file

from momacli.comparing.events import Pace, Peak, decode, encode
from momacli.comparing.process import run_process
from momacli.errors import MomaError
from momacli.progress import Notice, Progress, ignore


@pytest.fixture
def merge(tmp_path):
    """A merge of two bare files."""
    for name, value in {"base": 1.0, "x": 2.0}.items():
        save_file({"w": numpy.full(3, value, "f4")}, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "x")]
    return ["merge", *files, "-o", str(tmp_path / "merged.safetensors")]


def test_the_peak_is_the_childs_own_not_its_parents(merge, tmp_path):
    ballast = numpy.ones(60_000_000)  # 480 MB, resident

    events = []
    done = run_process(merge, events.append)

    assert done.report["merged"] == 1
    assert (tmp_path / "merged.safetensors").is_file()
    assert any(isinstance(event, Progress) for event in events)
    assert 10e6 < done.memory < ballast.nbytes


def test_the_error_of_a_process_is_raised_here_with_details_and_hint(merge):
    save_file({"w": numpy.ones(2, "f4")}, merge[2])

    with pytest.raises(MomaError) as caught:
        run_process(merge, ignore)

    assert "does not fit the base" in caught.value.message
    assert caught.value.details == ("x: w   expected F32[3], found F32[2]",)
    assert caught.value.hint


def test_a_process_ends_with_the_one_who_waits_for_it(merge, tmp_path, monkeypatch):
    script = tmp_path / "forever"
    script.write_text(f"#!/bin/sh\necho '{encode(Notice('begun'))}' >&2\nexec sleep 60\n")
    script.chmod(0o755)
    started = []

    class Kept(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def stop(event):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(subprocess, "Popen", Kept)

    with pytest.raises(KeyboardInterrupt):
        run_process(merge, stop)

    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_events_are_read_as_they_were_written_and_text_is_none():
    for event in (
        Progress("merging", 1, 2, "bytes", {"loss": 0.5}),
        Notice("so"),
        Peak(7),
        Peak(7, 3),
    ):
        assert decode(encode(event)) == event
    for text in ("error: no", "", "{}", '{"peak": 3}', '{"other": {}}', '{"progress": {"x": 1}}'):
        assert decode(text) is None


def test_a_stage_is_told_now_and_then_and_at_its_end():
    pace = Pace()

    told = [pace.lets(Progress("a", done, 100, "steps")) for done in range(1, 101)]

    assert told[0]
    assert told[-1]
    assert sum(told) < 10
    assert pace.lets(Progress("b", 1, 100, "steps"))
    assert pace.lets(Notice("always"))
