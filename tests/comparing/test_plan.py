from dataclasses import replace
from pathlib import Path

from momacli.alignment.settings import Settings
from momacli.comparing.commands import Common
from momacli.comparing.plan import Keys
from momacli.data.reading import Reading

COMMON = Common([], "base", [], Path(), as_folders=False, reading=Reading(), seed=0, device="cpu")


def key(common=COMMON, precision="float32"):
    return Keys(common, {}, {}, {}, (None, precision)).of("average+moma", uses_data=True)


def test_rows_of_the_same_inputs_and_settings_have_the_same_key_and_of_others_another():
    others = [replace(COMMON, seed=1), replace(COMMON, device="cuda"), replace(COMMON, heads=["x"])]

    assert key() == key()
    assert len({key(), key(precision="bfloat16"), *map(key, others)}) == 5


def test_a_row_is_made_anew_where_what_it_leaves_out_means_something_else(monkeypatch):
    before = key()

    monkeypatch.setattr("momacli.comparing.plan.Settings", lambda: Settings(steps=301))

    assert key() != before
