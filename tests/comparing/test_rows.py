import pytest

from momacli.comparing.rows import STATE, Finished, Row, check_folder
from momacli.errors import OutputError
from momacli.statistics.score import Score

ROW = Row("ties", "ties", False, {"cats": Score(3, 4)}, added=0, seconds=1.5, memory=10)


def test_what_is_finished_is_read_back_as_it_was(tmp_path):
    Finished(tmp_path / STATE).put("key", ROW)

    assert Finished(tmp_path / STATE).get("key") == ROW
    assert Finished(tmp_path / STATE).get("other") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "x", "rows": {}}', '{"rows": 3}'])
def test_a_damaged_file_counts_as_none_and_that_is_said(tmp_path, text):
    (tmp_path / STATE).write_text(text)
    told = []

    assert Finished(tmp_path / STATE, listener=told.append).get("key") is None
    assert len(told) == 1


def test_a_folder_of_other_things_is_not_written_to_without_force(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")

    with pytest.raises(OutputError, match="holds no comparison"):
        check_folder(tmp_path, force=False)
    check_folder(tmp_path, force=True)


def test_a_new_folder_an_empty_one_and_a_comparison_can_be_written_to(tmp_path):
    check_folder(tmp_path, force=False)
    check_folder(tmp_path / "new", force=False)
    Finished(tmp_path / STATE).put("key", ROW)
    check_folder(tmp_path, force=False)
