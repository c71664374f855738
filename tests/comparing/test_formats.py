"""Formats against tables written by hand."""

import csv
import io
from dataclasses import replace

import pytest

from momacli.comparing.latex import as_latex
from momacli.comparing.markdown import as_markdown
from momacli.comparing.rows import Row
from momacli.comparing.separated import as_csv
from momacli.comparing.table import main_table, sweep_table
from momacli.statistics.score import Score

TASKS = ["ag_news", "dtd"]


def row(name: str, label: str, first: int, second: int, **costs) -> Row:
    scores = {"ag_news": Score(first, 100), "dtd": Score(second, 1000)}
    return Row(name, label, label.startswith("w/"), scores, **costs)


@pytest.fixture
def rows() -> list[Row]:
    return [
        row("pre-trained", "Pre-trained", 20, 332, added=0, seconds=0.5, memory=62_400_000),
        row("fine-tuned", "Fine-tuned", 99, 998),
        row("ties", "ties (density 0.1)", 70, 500, added=0, seconds=2.0, memory=70_000_000),
        row("ties+moma", "w/ MOMA", 90, 500, added=0, seconds=123.4, memory=1_500_000_000),
        Row("slerp", "slerp", False, error="takes 2 experts & no more: 50%"),
    ]


def test_markdown_has_the_best_of_each_column_in_bold(rows):
    assert as_markdown(main_table(rows, TASKS)) == (
        "| Method | ag\\_news | dtd | Avg. | Added | Time (s) | Memory (MB) |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| Pre-trained | 20.0 | 33.2 | 26.6 | 0 | 0.5 | 62 |\n"
        "| Fine-tuned | 99.0 | 99.8 | 99.4 | - | - | - |\n"
        "| ties (density 0.1) | 70.0 | **50.0** | 60.0 | 0 | 2.0 | 70 |\n"
        "| &nbsp;&nbsp;w/ MOMA | **90.0** | **50.0** | **70.0** | 0 | 123 | 1500 |\n"
        "| slerp | - | - | failed | - | - | - |\n"
        "\n"
        "- slerp failed: takes 2 experts & no more: 50%\n"
    )


def test_the_memory_of_a_gpu_has_a_column_where_one_was_used(rows):
    rows[3] = replace(rows[3], gpu_memory=2_000_000_000)

    lines = as_markdown(main_table(rows, TASKS)).splitlines()

    assert [line.split(" | ")[-1].rstrip(" |") for line in lines[:7]] == [
        "GPU (MB)", "---:", "-", "-", "-", "2000", "-",
    ]  # fmt: skip
    assert "2000000000" in as_csv(rows, TASKS)


def test_latex_prints_special_signs_as_they_are_and_indents_alignments(rows):
    rows[2] = row("ties", "a_b & 5% {x} ~^\\", 70, 500)

    assert as_latex(main_table(rows[1:4], TASKS)) == (
        "\\begin{tabular}{lrrrrrr}\n"
        "\\toprule\n"
        "Method & ag\\_news & dtd & Avg. & Added & Time (s) & Memory (MB) \\\\\n"
        "\\midrule\n"
        "Fine-tuned & 99.0 & 99.8 & 99.4 & - & - & - \\\\\n"
        "a\\_b \\& 5\\% \\{x\\} \\textasciitilde{}\\textasciicircum{}\\textbackslash{} "
        "& 70.0 & \\textbf{50.0} & 60.0 & - & - & - \\\\\n"
        "\\quad w/ MOMA & \\textbf{90.0} & \\textbf{50.0} & \\textbf{70.0} & 0 & 123 & 1500 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


def test_latex_says_what_failed_in_comments_of_one_line_each(rows):
    rows[4] = Row("slerp", "slerp", False, error="two\nlines")

    assert as_latex(main_table(rows, TASKS)).startswith("% slerp failed: two lines\n\\begin")


def test_csv_has_shares_and_every_row_with_its_error(rows):
    records = list(csv.DictReader(io.StringIO(as_csv(rows, TASKS))))

    assert [record["method"] for record in records] == [one.name for one in rows]
    assert float(records[3]["ag_news"]) == 0.9
    assert float(records[3]["average"]) == pytest.approx(0.7)
    assert int(records[3]["peak_memory_bytes"]) == 1_500_000_000
    assert records[3]["peak_gpu_memory_bytes"] == records[1]["seconds"] == ""
    assert records[4]["error"] == "takes 2 experts & no more: 50%"


def test_a_sweep_has_its_setting_in_percent(rows):
    swept = row("ties+moma", "w/ MOMA", 90, 500, data_ratio=0.01)
    lines = as_markdown(sweep_table("Ratio", [rows[2], swept], TASKS)).splitlines()

    assert lines[0] == "| Method | Ratio | ag\\_news | dtd | Avg. |"
    assert lines[2] == "| ties (density 0.1) | - | 70.0 | 50.0 | 60.0 |"
    assert lines[3] == "| &nbsp;&nbsp;w/ MOMA | 1% | 90.0 | 50.0 | 70.0 |"


def test_a_single_method_is_not_the_best_of_anything(rows):
    assert "**" not in as_markdown(main_table(rows[:3], TASKS))


def test_equal_unrounded_numbers_are_best_together_and_rounding_decides(rows):
    close = [row("a", "a", 50, 700), row("b", "b", 50, 699)]

    text = as_markdown(main_table(close, TASKS))

    assert text.count("**50.0**") == 2
    assert text.count("**70.0**") == 1
    assert "**69.9**" not in text


def test_neither_the_experts_nor_the_pre_trained_model_are_ever_the_best():
    same = [row(name, name, 50, 700) for name in ("pre-trained", "fine-tuned", "a", "b")]

    bold = [line.count("**") > 0 for line in as_markdown(main_table(same, TASKS)).splitlines()[2:]]

    assert bold == [False, False, True, True]
