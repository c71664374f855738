import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_models import CLASSES

from momacli.cli.main import run


@pytest.fixture
def ckpts(vit_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work in a new folder with a folder `ckpts`; returns what `ckpts/*.safetensors` matches."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vit_files, "ckpts")
    return sorted(str(path) for path in Path("ckpts").glob("*.safetensors"))


def test_stdout_is_the_path_of_the_output_and_stderr_tells_the_rest(ckpts, capfd):
    assert run(["merge", *ckpts, "--method", "ties"]) == 0

    shown = capfd.readouterr()
    assert shown.out == "merged.safetensors\n"
    lines = shown.err.splitlines()
    assert lines[:4] == [
        "merged 3 experts by ties (density 0.2, lambda 1, aggregate mean, scope global)",
        "  base     ckpts/base.safetensors",
        "  experts  birds, cats, dogs",
        "  tensors  38 merged (4.8 k parameters), 6 of heads carried along",
    ]
    assert lines[4].startswith("  changed  ")
    assert lines[5].startswith("  wrote    merged.safetensors (20.0 kB) in ")
    assert lines[6].startswith("  speed    ")
    assert len(lines) == 7


def test_every_tensor_that_is_not_merged_is_accounted_for(ckpts, capfd):
    run(["merge", *ckpts, "--exclude", "*.layernorm.*", "--heads", "classifier.weight"])
    shown = capfd.readouterr().err
    run(["merge", *ckpts, "--exclude", "*.layernorm.*", "--exclude", "classifier.*"])
    heads_kept = capfd.readouterr().err

    assert "error: 3 tensors of the experts do not fit" in shown
    assert "2 from the base (vit.layernorm.bias, vit.layernorm.weight)" in heads_kept
    assert "6 of heads carried along" in heads_kept


def test_the_report_as_json_is_all_there_is_on_stdout(ckpts, capfd):
    assert run(["merge", *ckpts, "--json", "--set", "lambda=0.5"]) == 0

    report = json.loads(capfd.readouterr().out)
    assert report["output"] == "merged.safetensors"
    assert report["parameters"] == {"lam": 0.5}
    assert report["tasks"] == list(CLASSES)
    assert 0.99 < report["changed_share"] <= 1


def test_a_dry_run_prints_the_plan_on_stdout_and_writes_nothing(ckpts, capfd):
    assert run(["merge", *ckpts, "--dry-run"]) == 0

    shown = capfd.readouterr()
    assert shown.out.startswith("would merge 3 experts by task-arithmetic (lambda 0.3)\n")
    assert "\n  output   merged.safetensors (20.0 kB)\n  needs    about " in shown.out
    assert shown.err == ""
    assert not Path("merged.safetensors").exists()


def test_options_of_the_method_come_by_flag_or_by_set(ckpts, capfd):
    run(
        [
            "merge",
            *ckpts,
            "--method",
            "ties",
            "--density",
            "0.5",
            "--aggregate",
            "sum",
            "-o",
            "a.safetensors",
        ]
    )
    run(
        [
            "merge",
            *ckpts,
            "--method",
            "ties",
            "--set",
            "density=0.5",
            "--set",
            "aggregate=sum",
            "-o",
            "b.safetensors",
        ]
    )

    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_weights_come_by_order_or_by_name_and_may_be_negative(ckpts, capfd):
    run(["merge", *ckpts, "--weights", "-1,1,0.5", "-o", "a.safetensors"])
    run(["merge", *ckpts, "--weights", "dogs=0.5,birds=-1", "-o", "b.safetensors"])

    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--method", "tis"], "there is no merge method tis"),
        (["--set", "densty=0.5", "--method", "ties"], "method ties has no option --set densty"),
        (["--set", "lam"], "--set: expected OPTION=VALUE, found lam"),
        (["--lambda", "1", "--set", "lambda=2"], "option lambda is given twice"),
        (["--weights", "1,x,1"], "--weights: expected a number, found 'x'"),
        (["--weights", "1,nan,1"], "--weights: expected a finite number, found nan"),
        (["--weights", "1,cats=1,1"], "--weights: give a name to every number or to none"),
        (["--weights", "cats=1,cats=2"], "--weights names cats twice"),
        (["--weights", "horses=1"], "--weights names horses, which is no expert"),
        (["--scope", "layer", "--method", "ties"], "--scope: expected global or tensor"),
    ],
)
def test_a_mistyped_option_is_an_error_with_status_2(ckpts, capfd, arguments, error):
    assert run(["merge", *ckpts, *arguments]) == 2

    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {error}")
    assert not Path("merged.safetensors").exists()


def test_the_nearest_name_is_suggested(ckpts, capfd):
    run(["merge", *ckpts, "--method", "task-arithmatic"])
    method = capfd.readouterr().err
    run(["merge", *ckpts, "--method", "ties", "--set", "densty=1"])
    option = capfd.readouterr().err

    assert "hint: did you mean task-arithmetic?\n" in method
    assert "hint: did you mean --density?\n" in option


def test_an_output_named_in_bytes_that_are_not_utf8_is_printed_as_it_is(ckpts, capfdbinary):
    name = os.fsdecode(b"merg\xe9.safetensors")

    assert run(["merge", *ckpts, "-o", name]) == 0

    assert capfdbinary.readouterr().out == b"merg\xe9.safetensors\n"
    assert Path(name).is_file()


def test_a_merge_has_its_place_in_a_pipeline(ckpts, tmp_path):
    run(["merge", *ckpts, "--method", "ties"])
    first = Path("merged.safetensors").read_bytes()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "moma"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m momacli "$@"\n')
    command.chmod(0o755)

    done = subprocess.run(
        ["sh", "-c", "ls ckpts/*.safetensors | xargs moma merge --method ties | cat"],
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    assert done.stdout == "merged.safetensors\n", done.stderr
    assert Path("merged.safetensors").read_bytes() == first
    assert len(load_file("merged.safetensors")) == 38 + 2 * len(CLASSES)
