import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_models import CLASSES

from momacli.cli.main import run

QUICK = ["--steps", "5", "--batch-size", "8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit_folders, vit_images):
    """A folder in which the tiny experts are merged."""
    root = tmp_path_factory.mktemp("cli_align")
    shutil.copytree(vit_folders, root / "experts")
    shutil.move(root / "experts" / "base", root / "base")
    for kind in ("labeled", "unlabeled"):
        (root / kind).symlink_to(vit_images / kind)
    experts = [str(root / "experts" / task) for task in CLASSES]
    base = str(root / "base")
    assert run(["merge", *experts, "--base", base, "-o", str(root / "merged")]) == 0
    return root


def test_align_prints_the_path_alone_on_stdout_and_the_summary_on_stderr(place, capfd):
    status = run(["align", "--data", "unlabeled", "--device", "cpu", *QUICK])

    out, err = capfd.readouterr()
    assert status == 0
    assert out == "aligned\n"
    assert "none added" in err
    assert all(task in err for task in CLASSES)


def test_the_report_of_align_is_json_with_a_loss_before_and_after_per_task(place, capfd):
    assert run(["align", "--data", "unlabeled", "--json", "-o", "json", *QUICK]) == 0

    report = json.loads(capfd.readouterr().out)
    assert set(report["tasks"]) == set(CLASSES)
    for task in report["tasks"].values():
        assert task["objective_after"] < task["objective_before"]
    assert report["settings"]["steps"] == 5


def test_a_batch_size_that_was_found_is_recorded_as_a_number(place, capfd):
    quick = ["--steps", "2", "--batch-size", "auto"]
    assert run(["align", "--data", "unlabeled", "--json", "-o", "found", *quick]) == 0

    report = json.loads(capfd.readouterr().out)
    with safe_open("found/alignment.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["moma"])
    assert report["settings"]["batch_size"] == recipe["parameters"]["batch_size"] == 16


def test_features_prepared_in_half_precision_are_found_by_a_later_run(place, capfd):
    kept = ["--cache", "half", "--cache-dtype", "float16"]
    assert run(["align", "--data", "unlabeled", "--prepare", "all", *kept]) == 0
    assert capfd.readouterr().out == "half\n"
    assert run(["align", "--data", "unlabeled", "--mask", "none", *kept, "-o", "later"]) == 0

    assert "features of 3 tasks found, of 0 computed" in capfd.readouterr().err
    assert {path.name.split("-")[0] for path in Path("half").glob("*.safetensors")} == set(CLASSES)


def test_views_of_few_images_are_told_and_prepared_alike(place, capfd):
    kept = ["--cache", "views"]
    assert run(["align", "--data", "unlabeled", "--prepare", "all", *kept]) == 0
    assert "views of each of its" in capfd.readouterr().err
    assert run(["align", "--data", "unlabeled", "--json", "-o", "seen", *kept, *QUICK]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["settings"]["views"] == "auto"
    assert {(task["samples"], task["views"]) for task in report["tasks"].values()} == {(40, 8)}
    assert "features of 3 tasks found, of 0 computed" in err

    plain = ["--data", "unlabeled", "--recipe", "paper", "-o", "plain", *kept, *QUICK]
    assert run(["align", *plain]) == 0
    err = capfd.readouterr().err
    assert "views of each" not in err
    assert "of 3 computed" in err


def test_early_stop_is_recorded_and_needs_no_more_than_a_flag(place, capfd):
    quick = ["--steps", "2", "--batch-size", "8"]
    assert run(["align", "--data", "unlabeled", "--early-stop", "--json", "-o", "es", *quick]) == 0

    assert json.loads(capfd.readouterr().out)["settings"]["early_stop"] is True


def test_absorb_prints_its_path_and_that_no_parameter_was_added(place, capfd):
    assert run(["align", "--data", "unlabeled", "-o", "one", *QUICK]) == 0
    capfd.readouterr()

    assert run(["absorb", "merged", "one/alignment.safetensors", "-o", "two"]) == 0
    out, err = capfd.readouterr()
    assert out == "two\n"
    assert "+0" in err


def test_evaluate_shows_models_side_by_side_and_the_average(place, capfd):
    assert run(["evaluate", "merged", "--compare", "experts", "--data", "labeled"]) == 0

    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["task", "merged", "experts"]
    assert [line.split()[0] for line in lines[1:]] == [*CLASSES, "average"]


def test_evaluate_in_json_has_counts_and_intervals(place, capfd):
    assert run(["evaluate", "merged", "--data", "labeled", "--json"]) == 0

    tasks = json.loads(capfd.readouterr().out)["models"]["merged"]["tasks"]
    for score in tasks.values():
        low, high = score["interval"]
        assert low <= score["accuracy"] == score["correct"] / score["total"] <= high


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["align", "--data", "unlabeled", "--mask", "rows"], 2, "mask"),
        (["align", "--data", "unlabeled", "--recipe", "best"], 2, "recipe"),
        (["align", "--data", "unlabeled", "--pooling", "max"], 2, "expected cls, pooler"),
        (["align", "--data", "unlabeled", "--features", "vit.foo"], 2, "has no module vit.foo"),
        (["evaluate", "experts", "--data", "labeled", "--heads", "foo"], 2, "matches no tensor"),
        (["align", "--data", "unlabeled", "--batch-size", "many"], 2, "a number or auto"),
        (["align", "--data", "unlabeled", "--views", "many"], 2, "--views: expected a number"),
        (["align", "--data", "unlabeled", "--views", "0"], 2, "views must be at least 1"),
        (["align", "--data", "unlabeled", "--cache-dtype", "int8"], 2, "float32 or float16"),
        (["align", "--data", "unlabeled", "--prepare", "mice"], 2, "has no task mice"),
        (["align", "--data", "unlabeled", "--prepare", "all", "--dry-run"], 2, "--dry-run cannot"),
        (
            ["align", "--data", "unlabeled", "--prepare", "all", "--steps", "5", "-o", "x"],
            2,
            "--steps, --output cannot",
        ),
        (["align", "--data", "unlabeled", "--precision", "half"], 2, "precision"),
        (["align"], 2, "--data"),
        (["align", "--data", "nowhere"], 1, "nowhere"),
        (["align", "nowhere", "--data", "unlabeled"], 1, "nowhere"),
        (["align", "experts", "--data", "unlabeled"], 1, "merged from"),
        (["absorb", "merged", "merged/cats"], 1, "expected an alignment"),
        (["evaluate", "merged", "--data", "unlabeled"], 1, "in no class folder"),
    ],
)
def test_what_cannot_work_is_an_error_with_a_way_out_and_writes_nothing(
    place, refused, arguments, status, word
):
    found, error = refused(*arguments)

    assert found == status
    assert word in error
