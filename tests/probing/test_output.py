import json

import pytest

from momacli.errors import OutputError
from momacli.probing.output import choose_report


@pytest.fixture
def report(tmp_path):
    """A folder as a probe leaves it, without its content."""
    folder = tmp_path / "report"
    folder.mkdir()
    listed = {"files": ["index.html", "numbers.json"]}
    (folder / "index.html").write_text("", encoding="utf-8")
    (folder / "numbers.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def test_a_report_and_a_place_where_nothing_is_are_written_to(report):
    assert choose_report(report, inputs=[], force=False) == report
    assert choose_report(report / "new", inputs=[], force=False) == report / "new"


def test_a_folder_with_anything_else_in_it_is_only_replaced_by_force(report):
    (report / "notes.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(OutputError) as caught:
        choose_report(report, inputs=[], force=False)
    assert str(report / "notes.txt") in caught.value.details
    assert choose_report(report, inputs=[], force=True) == report


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"files": [["index.html"]]}'])
def test_a_list_of_files_that_is_none_makes_no_report(report, content):
    (report / "numbers.json").write_text(content, encoding="utf-8")

    with pytest.raises(OutputError):
        choose_report(report, inputs=[], force=False)


def test_neither_a_file_nor_what_is_read_is_replaced_even_by_force(report):
    with pytest.raises(OutputError):
        choose_report(report / "index.html", inputs=[], force=True)
    with pytest.raises(OutputError):
        choose_report(report, inputs=[report / "index.html"], force=True)
