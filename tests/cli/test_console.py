import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from momacli.cli import listening as module
from momacli.cli.console import (
    Table,
    aligned,
    amount,
    duration,
    names,
    print_json,
    print_table,
    settings,
)
from momacli.cli.listening import listening
from momacli.progress import Notice, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0, "", "0"),
        (950, "bytes", "950 B"),
        (38_200, "", "38.2 k"),
        (5_700_000, "parameters", "5.7 M parameters"),
        (350_000_000, "bytes", "350 MB"),
        (2.5e15, "bytes", "2500 TB"),
    ],
)
def test_amounts_are_short(number, unit, text):
    assert amount(number, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_long_lists_are_cut_with_the_number_of_the_rest():
    assert names("abc") == "a, b, c"
    assert names("abcde", limit=3) == "a, b, c and 2 more"


def test_settings_are_in_the_words_of_the_command_line():
    parameters = {"lam": 0.3, "drop_rate": 0.5, "per": "row", "weights": {"x": 1.0, "y": -2.0}}

    assert settings(parameters) == "lambda 0.3, drop-rate 0.5, per row, weights x=1 y=-2"


def test_a_table_in_a_pipe_is_aligned_with_spaces():
    table = Table(["task", "accuracy"], [["mnist", "9.5"], ["a\x1bb", "10.25"]])

    assert aligned(table) == ["task    accuracy", "mnist        9.5", "a\\x1bb     10.25"]


def test_a_table_on_a_terminal_is_ruled_and_without_colour(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    print_table(Table(["task", "accuracy"], [["[red]mnist[/]", "9.5"]]))

    shown = sys.stdout.getvalue()
    assert "[red]mnist[/]" in shown
    assert "─" in shown
    assert "\x1b[3" not in shown


def test_what_is_over_at_once_is_not_reported_off_a_terminal(clock, capsys):
    with listening() as listener:
        listener(Progress("merging", 1, 2, "bytes"))
        listener(Progress("merging", 2, 2, "bytes"))

    assert capsys.readouterr().err == ""


def test_off_a_terminal_there_is_a_line_every_ten_seconds_and_a_last_one(clock, capsys):
    with listening() as listener:
        for second in range(26):
            clock[0] = 100.0 + second
            listener(Progress("aligning", second, 25, "steps", {"mnist": 0.12345}))

    assert capsys.readouterr().err.splitlines() == [
        "aligning: 1 of 25 steps, 1 steps/s, 24 s left, mnist 0.1235",
        "aligning: 11 of 25 steps, 1 steps/s, 14 s left, mnist 0.1235",
        "aligning: 21 of 25 steps, 1 steps/s, 4.0 s left, mnist 0.1235",
        "aligning: 25 of 25 steps, 1 steps/s, mnist 0.1235",
    ]


def test_the_rate_of_a_run_that_goes_on_counts_its_own_steps_and_samples(clock, capsys):
    with listening() as listener:
        for step in range(101, 112):
            clock[0] += 2.0
            listener(Progress("aligning", step, 111, "steps", {}, (step - 100) * 64))

    assert capsys.readouterr().err.splitlines() == [
        "aligning: 102 of 111 steps, 2.0 s each, 32 samples/s, 18 s left",
        "aligning: 107 of 111 steps, 2.0 s each, 32 samples/s, 8.0 s left",
        "aligning: 111 of 111 steps, 2.0 s each, 32 samples/s",
    ]


def test_a_notice_is_one_line(capsys):
    with listening() as listener:
        listener(Notice("two\nlines"))

    assert capsys.readouterr().err == "note: two\\nlines\n"


def test_on_a_terminal_there_is_a_bar_and_notices_stand_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")

    with listening() as listener:
        listener(Progress("merging", 1, 2, "bytes"))
        listener(Notice("[bold]look[/]"))
        listener(Progress("merging", 2, 2, "bytes"))

    shown = sys.stderr.getvalue()
    assert "merging" in shown
    assert "2 B of 2 B" in shown
    assert "note: [bold]look[/]" in shown


def test_a_closed_stderr_does_not_stop_the_work(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)

    with listening() as listener:
        listener(Notice("nobody reads this"))


def test_reports_are_json_that_any_program_reads(capsys):
    @dataclass
    class Report:
        place: Path
        numbers: tuple[float, ...]
        inner: dict[str, object]

    print_json(Report(Path("out"), (1.5, math.nan, -math.inf), {"n": 3, "all": True, "none": None}))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no number of JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {
        "place": "out",
        "numbers": [1.5, None, None],
        "inner": {"n": 3, "all": True, "none": None},
    }
