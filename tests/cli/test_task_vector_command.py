import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from momacli.cli.main import run


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A base and two experts, whose task vectors are (3, 4, 0) and (-4, 3, 0), in a new folder."""
    monkeypatch.chdir(tmp_path)
    models = {"base": [0.0, 0.0, 10.0], "x": [3.0, 4.0, 10.0], "y": [-4.0, 3.0, 10.0]}
    for name, values in models.items():
        tensors = {"layer.0.w": torch.tensor(values[:1]), "layer.1.w": torch.tensor(values[1:])}
        save_file(tensors, f"{name}.safetensors")
    return [f"{name}.safetensors" for name in models]


def test_norms_sparsity_and_cosines_are_printed_as_tables(checkpoints, capfd):
    assert run(["task-vector", *checkpoints]) == 0

    shown = capfd.readouterr()
    assert shown.out.splitlines() == [
        "norm                parameters       x       y",
        "layer.0                      1       3       4",
        "layer.1                      2       4       3",
        "all                          3       5       5",
        "of the base's norm              50.00%  50.00%",
        "exact zeros                     33.33%  33.33%",
        "",
        "cosine      x      y",
        "x       1.000  0.000",
        "y       0.000  1.000",
        "",
    ]
    assert shown.err.startswith("2 tensors (3 parameters) each\nwrote task-vectors (24 B) in ")


def test_one_task_vector_has_no_cosines_to_show(checkpoints, capfd):
    assert run(["task-vector", *checkpoints[:2], "-o", "tau.safetensors"]) == 0

    assert "cosine" not in capfd.readouterr().out
    assert Path("tau.safetensors").is_file()


def test_the_report_as_json_is_all_there_is_on_stdout(checkpoints, capfd):
    assert run(["task-vector", *checkpoints, "--json"]) == 0

    report = json.loads(capfd.readouterr().out)
    assert [vector["norm"] for vector in report["task_vectors"]] == [5, 5]
    assert report["cosines"] == [[1, 0], [0, 1]]
    assert report["task_vectors"][0]["output"] == "task-vectors/x.safetensors"


def test_a_remark_is_a_note_on_stderr(checkpoints, capfd):
    shutil.copyfile("base.safetensors", "same.safetensors")

    assert run(["task-vector", "base.safetensors", "same.safetensors"]) == 0

    assert "note: same equals the base: its task vector is zero\n" in capfd.readouterr().err


def test_a_glob_that_matches_the_base_too_does_no_harm(checkpoints, capfd):
    assert run(["task-vector", "base.safetensors", *checkpoints]) == 0

    assert {path.name for path in Path("task-vectors").iterdir()} == {
        "x.safetensors",
        "y.safetensors",
    }


def test_a_task_vector_is_accepted_by_merge_in_place_of_its_expert(checkpoints, capfd):
    run(["task-vector", *checkpoints])

    assert run(["merge", "task-vectors/x.safetensors", "--base", "base.safetensors"]) == 0
    assert run(["merge", "task-vectors/x.safetensors", "--base", "y.safetensors"]) == 1

    assert "--other-base" in capfd.readouterr().err
