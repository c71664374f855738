"""The demo end to end: its own training, the public commands, and what they win back."""

import contextlib
import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from momacli.cli.main import run
from momacli.demo import COLUMNS, commands, demo
from momacli.demonstration.digits import TASKS
from momacli.demonstration.prepare import DEFAULTS, prepare
from momacli.progress import Notice

HASTY = replace(
    DEFAULTS,
    pre_training=replace(DEFAULTS.pre_training, steps=250),
    fine_tuning=replace(DEFAULTS.fine_tuning, steps=100),
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(HASTY, id="hasty trainings"),
        pytest.param(DEFAULTS, id="as it is", marks=pytest.mark.long),
    ],
)
def settings(request):
    return request.param


@pytest.fixture(scope="module")
def shown(settings):
    """The command lines that ran, in order."""
    return []


@pytest.fixture(scope="module")
def report(tmp_path_factory, shown, settings):
    """One run of the whole demo, its commands run in this process."""
    root = tmp_path_factory.mktemp("demo")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))

        def run_here(arguments, folder):
            shown.append(shlex.join(arguments))
            output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
            patch.chdir(folder)  # contextlib.chdir is not there in Python 3.10
            with contextlib.redirect_stdout(output):
                assert run(list(arguments)) == 0
            return output.buffer.getvalue().decode()

        yield demo(root / "place", run=run_here, settings=settings)


def test_moma_wins_back_three_quarters_of_what_merging_lost(report):
    lost = report.average("fine-tuned") - report.average("merged")

    assert lost > 0.1
    assert report.recovered >= 0.75
    assert report.average("merged") < report.average("orthogonal only") < report.average("MOMA")


def test_the_public_commands_run_one_after_another(report, shown):
    assert [line.split()[0] for line in shown] == [
        "task-vector",
        "merge",
        "align",
        "align",
        "absorb",
        "evaluate",
    ]


def test_the_readme_shows_these_very_commands():
    readme = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
    lines = [
        f"$ (cd moma-demo && moma {shlex.join(arguments)})"
        for arguments in commands([task.name for task in TASKS])
    ]

    assert [line for line in readme.splitlines() if line.startswith("$ (cd moma-demo")] == lines


def test_it_leaves_models_images_and_one_figure(report):
    place = report.folder
    assert report.figure.read_bytes().startswith(b"\x89PNG")
    assert list(report.accuracies) == list(COLUMNS)
    for task in report.tasks:
        encoder = load_file(place / "aligned" / task / "model-00001-of-00002.safetensors")
        assert encoder
        seen = {path.name for path in (place / "unlabeled" / task).iterdir()}
        held_out = {path.name for path in (place / "labeled" / task).glob("*/*.png")}
        assert seen
        assert held_out
        assert not seen & held_out


def test_a_second_run_reuses_the_models_and_says_so(report, settings):
    events = []
    assert prepare(report.folder, settings=settings, listener=events.append).reused
    assert any(isinstance(event, Notice) and "reusing" in event.text for event in events)
