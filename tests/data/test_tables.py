import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from momacli.data.leaving_out import LeftOut
from momacli.data.tables import Columns, read_table
from momacli.errors import DataError

ROWS = [("a film, good", "pos"), ('a "bad" one\nin two lines', "neg"), ("ünïcode", "pos")]
TEXTS = [text for text, _ in ROWS]
LABELS = [label for _, label in ROWS]


def write_csv(path, rows, delimiter=","):
    import csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_text_file_holds_a_text_a_line_and_blank_lines_are_none(tmp_path):
    file = tmp_path / "task.txt"
    file.write_bytes("\ufeffone\n\n two\u2028still two\r\n".encode())

    assert list(read_table(file, Columns()).texts) == ["one", " two\u2028still two"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_columns_of_a_table_go_by_the_header(tmp_path, suffix, delimiter):
    header = ("text", "label")
    file = write_csv(tmp_path / f"task.{suffix}", [header, *ROWS], delimiter)
    table = read_table(file, Columns(), labeled=True)

    assert (list(table.texts), list(table.labels)) == (TEXTS, LABELS)


def test_columns_go_by_number_where_there_is_no_header(tmp_path):
    file = write_csv(tmp_path / "task.csv", [(label, "title", text) for text, label in ROWS])
    table = read_table(file, Columns(text="3", label="1"), labeled=True)

    assert (list(table.texts), list(table.labels)) == (TEXTS, LABELS)


def test_objects_a_line_may_be_compressed(tmp_path):
    file = write_jsonl(tmp_path / "x.jsonl", [{"body": t, "label": n} for n, t in enumerate(TEXTS)])
    (tmp_path / "task.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    table = read_table(tmp_path / "task.jsonl.gz", Columns(), labeled=True)

    assert (list(table.texts), list(table.labels)) == (TEXTS, [0, 1, 2])


def test_two_columns_are_pairs(tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": 0}]
    table = read_table(write_jsonl(tmp_path / "t.jsonl", rows), Columns("premise,hypothesis"))

    assert (list(table.texts), list(table.pairs)) == (["a"], ["b"])
    assert table.labels is None


def test_all_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path):
    write_jsonl(tmp_path / "2.jsonl", [{"text": "two"}])
    (tmp_path / "1.txt").write_text("one\n")
    (tmp_path / "readme.md").write_text("no data")

    assert list(read_table(tmp_path, Columns()).texts) == ["one", "two"]


def test_of_several_columns_the_text_has_to_be_named(tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"title": "a", "body": "b", "label": 0}])

    with pytest.raises(DataError) as caught:
        read_table(file, Columns())
    assert caught.value.details == ("title", "body", "label")
    assert list(read_table(file, Columns(text="body")).texts) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.jsonl", b'{"text": "a"}\n{"text": 3}\n', "row 2"),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "row 2"),
        ("t.jsonl", b"[1]\n", "line 1"),
        ("t.jsonl", b'{"text": \n', "line 1"),
        ("t.csv", b"text,label\na\n", "line 2"),
        ("t.txt", b"\xff\xfe\n", "UTF-8"),
        ("t.txt", b"\n\n", "nothing"),
        ("t.txt.gz", b"not compressed", "cannot be read"),
        ("t.doc", b"", "no text"),
        ("t.txt", b"good\n\xe9\n", "UTF-8"),
        ("t.csv", b"text\n\xe9\n", "UTF-8"),
        ("t.jsonl", b"[" * 100_000, "line 1 is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=told):
        read_table(tmp_path / name, Columns())


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.csv", "t.txt.gz"])
def test_a_line_that_would_fill_the_memory_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("momacli.data.tables._LONGEST", 1000)
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write("text\n" if "csv" in name else '{"text": "a"}\n')
        file.write("x" * 2000)

    with pytest.raises(DataError, match="line 2 is longer than 1000 characters"):
        read_table(tmp_path / name, Columns())


def test_a_missing_label_column_is_named(tmp_path):
    file = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "class": 0}])

    with pytest.raises(DataError, match="no column label") as caught:
        read_table(file, Columns(), labeled=True)
    assert "--label-column" in str(caught.value.hint)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")

    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "t.parquet", Columns())
    assert "pip install pyarrow" in str(caught.value.hint)


def test_parquet_is_read_by_column(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": TEXTS, "label": [0, 1, 2]}), tmp_path / "t.parquet"
    )
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    table = read_table(tmp_path / "t.parquet", Columns(), labeled=True)

    assert (list(table.texts), list(table.labels)) == (TEXTS, [0, 1, 2])
    with pytest.raises(DataError, match=r"broken\.parquet"):
        read_table(tmp_path / "broken.parquet", Columns())


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("t.txt", b"one\n\xe9\nthree\n", ["one", "three"]),
        ("t.txt", b"one\n" + b"x" * 5000 + b"\nthree\n", ["one", "three"]),
        ("t.txt", b"one\n" + b"x" * 5000, ["one"]),
        ("t.jsonl", b'{"text": "one"}\n[1]\n{"text": "three"}\n', ["one", "three"]),
        ("t.jsonl", b'{"text": "one"}\n{"text": \n', ["one"]),
        ("t.csv", b"text,label\none,0\n\xff,1\nthree,0\n", ["one", "three"]),
    ],
)
def test_lines_that_cannot_be_read_are_left_out_counted_and_named(
    tmp_path, monkeypatch, name, content, kept
):
    monkeypatch.setattr("momacli.data.tables._LONGEST", 1000)
    (tmp_path / name).write_bytes(content)
    left_out, events = LeftOut(), []

    table = read_table(tmp_path / name, Columns(), leave_out=left_out)
    left_out.tell(events.append, tmp_path)

    assert list(table.texts) == kept
    assert left_out.count == 1
    (notice,) = events
    assert "left out 1 part" in notice.text
    assert name in notice.text


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "\\ud800"}\n')

    with pytest.raises(DataError, match="row 1"):
        read_table(tmp_path / "t.jsonl", Columns())
