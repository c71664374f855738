import pytest

from momacli.figures.families import Family, draw_families

FAMILIES = [
    Family("raw", [0.9, 0.7], [1.0, 0.8], [0.2, 0.4]),
    Family("linear", [0.1, 0.1], [0.2, 0.4], [0.8, 0.9]),
]


def test_bars_are_mean_errors_and_points_are_the_accuracies_of_each_task():
    errors, accuracies = draw_families(FAMILIES, ["a", "b"], {"fine-tuned": 0.95}).axes

    assert [bar.get_height() for bar in errors.patches] == pytest.approx([80, 10, 90, 30])
    lines = {line.get_label(): list(line.get_ydata()) for line in accuracies.get_lines()}
    assert lines["a"] == pytest.approx([20, 80])
    assert lines["average"] == pytest.approx([30, 85])
    assert set(lines["fine-tuned"]) == {95.0}
    for axes in (errors, accuracies):
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["raw", "linear"]


def test_the_two_kinds_of_bars_differ_without_colours():
    errors = draw_families(FAMILIES, ["a", "b"], {}).axes[0]

    assert {bar.get_hatch() for bar in errors.patches} == {"", "//"}
