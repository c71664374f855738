"""The command on tiny real models, in real processes, and what it prints."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from momacli.cli.main import run
from momacli.comparing.rows import Row
from momacli.comparing.table import main_table
from momacli.statistics.score import Score

TASKS = ("birds", "cats")
INPUTS = ["experts/birds", "experts/cats", "--base", "base", "--eval", "labeled"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit_folders, vit_images):
    """A folder with two experts and their samples, in which a comparison was run."""
    root = tmp_path_factory.mktemp("cli_compare")
    for task in TASKS:
        shutil.copytree(vit_folders / task, root / "experts" / task)
    for item, source in (("base", vit_folders), ("labeled", vit_images), ("unlabeled", vit_images)):
        (root / item).symlink_to(source / item)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run(["compare", *INPUTS, "--methods", "average"]) == 0
    return root


def compare(*options: str) -> int:
    return run(["compare", *INPUTS, "--methods", "average", *options])


def test_the_table_is_on_stdout_and_all_else_on_stderr(place, capfd):
    assert compare() == 0

    out, err = capfd.readouterr()
    header, *lines = out.splitlines()
    assert header.split() == ["Method", *TASKS, "Avg.", "Added", "Time", "(s)", "Memory", "(MB)"]
    assert [line.split()[0] for line in lines] == ["Pre-trained", "Fine-tuned", "average"]
    assert "compared 3 rows" in err


def test_memory_is_that_of_a_process_of_its_own(place, capfd):
    assert compare("--json") == 0

    rows = json.loads(capfd.readouterr().out)["rows"]
    assert rows[1]["memory"] is None
    assert 2e7 < rows[2]["memory"] < 4e8  # this one, with torch and the tests, has more


def test_the_other_forms_have_the_same_rows(place, capfd):
    printed = {}
    for form in ("--json", "--csv", "--latex", "--markdown"):
        assert compare(form) == 0
        printed[form] = capfd.readouterr().out

    average = json.loads(printed["--json"])["rows"][2]["scores"]
    records = list(csv.DictReader(io.StringIO(printed["--csv"])))
    for task in TASKS:
        score = average[task]["correct"] / average[task]["total"]
        assert float(records[2][task]) == score
        assert f"{100 * score:.1f}" in printed["--latex"].splitlines()[-3]
        assert f"{100 * score:.1f}" in printed["--markdown"].splitlines()[-1]


def test_the_best_is_bold_on_a_terminal(monkeypatch, capsys):
    from momacli.cli.compare import print_table

    monkeypatch.setattr("momacli.cli.console.is_terminal", lambda stream: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [Row(n, n, False, {"cats": Score(k, 1000)}) for n, k in (("a", 777), ("b", 555))]

    print_table(main_table(rows, ["cats"]))

    out = capsys.readouterr().out
    assert "\x1b[1m77.7\x1b[0m" in out
    assert "\x1b[1m55.5" not in out


def test_a_failed_row_ends_with_status_1_after_the_table(place, capfd):
    Path("failing/models").mkdir(parents=True)
    Path("failing/models/task-arithmetic").write_text("in the way")
    shutil.copy("comparison/rows.json", "failing")

    assert run(["compare", *INPUTS, "--methods", "task-arithmetic", "-o", "failing"]) == 1

    out, err = capfd.readouterr()
    assert out.splitlines()[-1].split() == ["task-arithmetic", "-", "-", "failed", "-", "-", "-"]
    assert "error: 1 of 3 rows failed\n  task-arithmetic: " in err
    assert "cannot be written" in err
    assert "hint: the same command tries them again" in err


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--methods", "avrage,ties+mona"], 2, "did you mean average"),
        (["--methods", "average", "--json", "--csv"], 2, "exclude each other"),
        (["--methods", "average+moma"], 2, "1 of 2 methods need unlabeled samples"),
        (["--methods", "average", "--masking-rates", "half"], 2, "no share"),
        (["--methods", "average", "--data-ratios", "10%"], 2, "no method is aligned"),
        (["--methods", "average", "-o", "base"], 1, "holds no comparison"),
    ],
)
def test_what_cannot_work_is_an_error_with_a_way_out(place, refused, options, status, words):
    found, error = refused("compare", *INPUTS, *options)

    assert found == status
    assert words in error


def test_a_dry_run_lists_rows_by_the_names_they_have_in_methods(place, capfd):
    sweep = ["--masking-rates", "50%", "--data-ratios", "1%,100%"]
    rows = ["--methods", "average,breadcrumbs:beta=0.5+moma:steps=3"]

    assert run(["compare", *INPUTS, "--data", "unlabeled", *rows, *sweep, "--dry-run"]) == 0

    assert capfd.readouterr().out.splitlines() == [
        "would compare pre-trained",
        "would compare fine-tuned",
        "would compare average",
        "would compare breadcrumbs:beta=0.5",
        "would compare breadcrumbs:beta=0.5+moma:steps=3",
        "would compare breadcrumbs:beta=0.5+moma:steps=3 (50% of the mask set to 0)",
        "would compare breadcrumbs:beta=0.5+moma:steps=3 (1% of the samples)",
    ]


@pytest.mark.long
def test_ctrl_c_ends_the_children_keeps_rows_and_the_same_command_goes_on(place, tmp_path):
    methods = "average+moma:steps=2000,task-arithmetic"
    arguments = [*INPUTS, "--data", "unlabeled", "--methods", methods, "-o", str(tmp_path / "out")]
    command = [sys.executable, "-m", "momacli", "compare", *arguments]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    state = tmp_path / "out" / "models" / "average+moma_steps=2000" / "model.state.safetensors"
    until = time.monotonic() + 600
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert state.exists()

    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 130
    assert out == ""
    assert "stopped; 3 of 5 rows are finished" in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on after step" in again.stderr
    assert len(again.stdout.splitlines()) == 6


@pytest.mark.long
def test_plain_files_with_both_sweeps_in_real_processes(place, capfd, tmp_path):
    files = [f"{task}=experts/{task}/model.safetensors" for task in TASKS]
    given = ["--base", "base/model.safetensors", "--data", "unlabeled", "--eval", "labeled"]
    sweeps = ["--masking-rates", "50%", "--data-ratios", "50%,100%", "-o", str(tmp_path / "out")]
    quick = "task-arithmetic+moma:steps=2:batch-size=8,task-arithmetic+surgery:steps=3"
    rows = ["--methods", quick]

    assert run(["compare", *files, *given, *rows, *sweeps, "--csv"]) == 0

    records = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [(one["masking_rate"], one["data_ratio"]) for one in records[3:]] == [
        ("", ""),
        ("", ""),
        ("0.5", ""),
        ("", "0.5"),
        ("", "0.5"),
    ]
    assert all(one["average"] and not one["error"] for one in records)
    assert not Path(tmp_path / "out" / "models").exists()
