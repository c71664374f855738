from dataclasses import replace
from pathlib import Path

import pytest

from momacli.alignment.settings import Settings
from momacli.comparing.commands import Common
from momacli.comparing.plan import Keys
from momacli.comparing.specs import read_specs
from momacli.data.reading import Reading

COMMON = Common([], "base", [], Path(), as_folders=False, reading=Reading(), seed=0, device="cpu")


def key(common=COMMON, precision="float32", row="average+moma"):
    (*_, spec), _ = read_specs([row])
    return Keys(common, {}, {}, {}, (None, precision)).of(row, spec)


def test_rows_of_the_same_inputs_and_settings_have_the_same_key_and_of_others_another():
    others = [replace(COMMON, seed=1), replace(COMMON, device="cuda"), replace(COMMON, heads=["x"])]

    assert key() == key()
    assert len({key(), key(precision="bfloat16"), *map(key, others)}) == 5


@pytest.mark.parametrize(
    "row", ["average+moma", "ties+paper:steps=9", "average+orthogonal", "average+linear"]
)
def test_a_row_is_made_anew_where_what_it_leaves_out_means_something_else(row, monkeypatch):
    before = key(row=row)

    monkeypatch.setattr("momacli.comparing.plan.Settings", lambda: Settings(prior=31))

    assert key(row=row) != before


@pytest.mark.parametrize("row", ["average", "ties+surgery", "average+orthogonal"])
def test_a_row_is_kept_where_only_settings_change_that_it_has_not(row, monkeypatch):
    before = key(row=row)

    monkeypatch.setattr("momacli.comparing.plan.Settings", lambda: Settings(steps=301))

    assert key(row=row) == before
