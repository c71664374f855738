import json
import shutil
from pathlib import Path

import pytest
from tiny_models import CLASSES

from momacli.cli.main import run

TASKS = ("birds", "cats")
QUICK = ["--shots", "1,50%", "--draws", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit_folders, vit_images):
    """A folder in which two tiny experts are merged."""
    root = tmp_path_factory.mktemp("cli_probe")
    shutil.copytree(vit_images / "labeled", root / "labeled")
    shutil.rmtree(root / "labeled" / "dogs")
    experts = [str(vit_folders / task) for task in TASKS]
    base = str(vit_folders / "base")
    assert run(["merge", *experts, "--base", base, "-o", str(root / "merged")]) == 0
    return root


def test_the_numbers_are_tables_with_a_column_a_task_and_nothing_is_written(place, capfd):
    before = sorted(path for path in Path().iterdir() if path.name != "cache")

    assert run(["probe", "--data", "labeled", *QUICK]) == 0

    accuracies, geometry = capfd.readouterr().out.split("\n\n")
    lines = accuracies.splitlines()
    assert lines[0].split()[-3:] == [*TASKS, "average"]
    assert [line.split("  ")[0] for line in lines[1:7]] == [
        "fine-tuned",
        "merged",
        "+ kNN, 1 a class",
        "+ kNN, 50% a class",
        "+ Aligned-C, 1 a class",
        "+ Aligned-C, 50% a class",
    ]
    assert [line.split()[1] for line in lines[7:]] == [
        "scaling",
        "orthogonal",
        "similarity",
        "invertible",
        "linear",
        "affine",
    ]
    assert [line.split()[0] for line in geometry.splitlines()] == ["mean", *TASKS]
    assert sorted(path for path in Path().iterdir() if path.name != "cache") == before


def test_the_numbers_are_json_for_programs(place, capfd):
    assert run(["probe", "--data", "labeled", *QUICK, "--json"]) == 0

    report = json.loads(capfd.readouterr().out)
    assert set(report["tasks"]) == set(TASKS)
    for task, found in report["tasks"].items():
        assert found["classes"] == len(CLASSES[task])
        assert set(found["families"]) >= {"raw", "affine", "orthogonal"}
        assert found["closeness"]["orthogonal"]["determinant"] in (-1, 1)
    assert report["settings"]["shots"] == ["1", "50%"]


def test_a_dry_run_says_what_would_be_read_and_written(place, capfd):
    assert run(["probe", "--data", "labeled", "-o", "report", "--dry-run"]) == 0

    shown = capfd.readouterr().out
    assert all(f"labeled/{task}" in shown for task in TASKS)
    assert "report" in shown
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--data", "labeled", "--shots", "0"], 2, "'0'"),
        (["--data", "labeled", "--fit", "100%"], 2, "below 100 %"),
        (["--data", "labeled", "--draws", "0"], 2, "at least 1 draw"),
        (["--data", "labeled", "--points", "-1"], 2, "points"),
        ([], 2, "--data"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["nowhere", "--data", "labeled"], 1, "nowhere"),
        (["--data", "labeled", "-o", "labeled", "--force"], 1, "overwrite the input"),
        (["--data", "labeled", "-o", "merged"], 1, "overwrite the input"),
    ],
)
def test_what_cannot_work_is_an_error_and_writes_nothing(place, refused, arguments, status, word):
    found, error = refused("probe", *arguments)

    assert found == status
    assert word in error
