from momacli.figures.accuracy import save_figure
from momacli.figures.sweeps import draw_sweep

LINES = {"ties+moma": [(0.01, 0.6), (0.1, 0.8), (1.0, 0.9)], "average+moma": [(0.01, 0.5)]}


def test_every_method_is_a_line_through_its_points_in_percent():
    axes = draw_sweep(LINES, x_label="data").axes[0]

    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn["ties+moma"] == [[1, 60], [10, 80], [100, 90]]
    assert drawn["average+moma"] == [[1, 50]]


def test_lines_differ_without_colour():
    axes = draw_sweep(LINES, x_label="data").axes[0]

    looks = {(line.get_marker(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == len(LINES)


def test_levels_are_named_and_the_settings_are_the_ticks():
    axes = draw_sweep(LINES, x_label="data", levels={"Fine-tuned": 0.97}, logarithmic=True).axes[0]

    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "100"]
    assert axes.get_xscale() == "log"
    assert "Fine-tuned" in [text.get_text() for text in axes.texts]


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        save_figure(draw_sweep(LINES, x_label="data"), tmp_path / name)

    for suffix in ("svg", "png"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in "ab")
        assert first.read_bytes() == second.read_bytes()
