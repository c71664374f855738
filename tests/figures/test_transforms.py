import numpy as np
import pytest

from momacli.figures.transforms import draw_transforms


def test_a_line_a_task_shows_all_phases_and_singular_values():
    phases = {"a": np.array([0.0, 10, 90]), "b": np.array([5.0, 5, 180])}
    stretches = {"a": np.array([2.0, 1, 0.5]), "b": np.array([3.0, 1, 0])}

    left, right = draw_transforms(phases, stretches).axes

    shown = {line.get_label(): line for line in left.get_lines()}
    assert list(shown["b"].get_ydata()) == [5, 5, 180]
    assert list(shown["b"].get_xdata()) == pytest.approx([50 / 3, 50, 250 / 3])
    assert shown["a"].get_linestyle() != shown["b"].get_linestyle()
    assert shown["a"].get_marker() != shown["b"].get_marker()
    assert right.get_yscale() == "log"
    singular = {line.get_label(): line for line in right.get_lines()}["b"]
    assert list(singular.get_ydata())[:2] == [3, 1]
    assert np.isfinite(np.log(singular.get_ydata())).all()
