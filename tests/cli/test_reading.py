import json

import pytest

from momacli.cli.main import run
from momacli.cli.reading import reading_from
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.data.tables import Columns

NOTHING = {
    "seed": 0,
    "text_column": None,
    "label_column": None,
    "max_length": None,
    "strict": False,
}


def test_options_that_are_not_given_leave_the_defaults():
    assert reading_from(None, None, **NOTHING) == Reading()


def test_options_say_which_samples_are_read_and_where_they_are():
    given = NOTHING | {"seed": 3, "text_column": "a,b", "label_column": "c", "max_length": 9}

    found = reading_from(5, "10%", **given)

    assert found == Reading(Sampling(5, 0.1, 3), Columns("a,b", "c"), 9)


def test_a_sample_of_the_images_of_each_task_is_evaluated(vit_folders, vit_images, capsys):
    tasks = ("birds", "cats")
    data = [f"--data={task}={vit_images / 'labeled' / task}" for task in tasks]
    models = [str(vit_folders / task) for task in tasks]
    status = [
        run(["evaluate", model, one, "--sample", "25%", "--json"])
        for model, one in zip(models, data, strict=True)
    ]
    shown = capsys.readouterr().out

    assert status == [0, 0]
    assert shown.count('"total": 10') == 2
    assert json.loads(shown.split("\n}\n")[0] + "\n}")["models"]


@pytest.mark.parametrize(("option", "value"), [("--sample", "many"), ("--max-samples", "0")])
def test_a_senseless_sample_is_wrong_usage(vit_folders, vit_images, capsys, option, value):
    data = str(vit_images / "labeled")

    assert run(["evaluate", str(vit_folders / "cats"), "--data", data, option, value]) == 2
    assert "error: " in capsys.readouterr().err
