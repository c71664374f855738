from momacli.figures.few_shot import Panel, draw_few_shot

PANEL = Panel(
    "cats",
    {"fine-tuned": 0.9, "merged": 0.4},
    {"kNN": [(0.5, 0.1), (0.6, 0.05)], "Aligned-C": [(0.7, 0.0), (0.8, 0.0)]},
)


def test_each_panel_has_its_levels_and_a_curve_for_each_protocol():
    figure = draw_few_shot([PANEL] * 4, ["1", "5"])

    assert [axes.get_title() for axes in figure.axes] == ["cats"] * 4
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines["fine-tuned"].get_ydata()) == {90.0}
    assert set(lines["merged"].get_ydata()) == {40.0}
    curves = {bars.get_label(): bars.lines[0].get_ydata() for bars in figure.axes[0].containers}
    assert {name: list(values) for name, values in curves.items()} == {
        "kNN": [50.0, 60.0],
        "Aligned-C": [70.0, 80.0],
    }
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "5"]


def test_nothing_is_told_by_colour_alone():
    axes = draw_few_shot([PANEL], ["1", "5"]).axes[0]

    styles = [line.get_linestyle() for line in axes.get_lines() if line.get_label()[0] != "_"]
    markers = [bars.lines[0].get_marker() for bars in axes.containers]
    assert len(set(styles)) == len(styles) == 2
    assert len(set(markers)) == len(markers) == 2
