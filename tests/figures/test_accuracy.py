import pytest

from momacli.figures.accuracy import draw_accuracy, save_figure

ROWS = {"fine-tuned": [0.9, 0.8], "merged": [0.5, 0.3]}
ENDS = {name: [(value - 0.05, value + 0.05) for value in values] for name, values in ROWS.items()}


def test_there_is_a_bar_for_every_model_task_and_average_at_its_accuracy():
    axes = draw_accuracy(ROWS, ["a", "b"], errors=ENDS).axes[0]

    heights = [round(bar.get_height()) for bar in axes.patches]
    assert heights == [90, 80, 85, 50, 30, 40]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "average"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_same_figure_is_the_same_bytes(tmp_path, suffix, start):
    for name in ("one", "two"):
        save_figure(draw_accuracy(ROWS, ["a", "b"]), tmp_path / f"{name}{suffix}")

    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert first.startswith(start)
    assert first == second
