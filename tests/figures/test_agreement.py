import numpy as np
import pytest

from momacli.figures.agreement import draw_agreement


def values(middle: float, spread: float) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.normal(middle, spread, 400) for _ in range(2)]


def lines_of(axes):
    return {line.get_label(): line.get_xydata().T for line in axes.get_lines()}


def test_each_density_is_one_in_all_and_highest_where_the_values_are():
    shown = {"raw": values(0.4, 0.05), "linear": values(0.8, 0.05)}
    cosines, coefficients = draw_agreement(shown, shown).axes

    for axes in (cosines, coefficients):
        for name, middle in (("raw", 0.4), ("linear", 0.8)):
            places, density = lines_of(axes)[name]
            assert np.trapezoid(density, places) == pytest.approx(1, abs=0.02)
            assert places[density.argmax()] == pytest.approx(middle, abs=0.05)


def test_no_density_is_drawn_beyond_a_cosine_of_one_and_none_is_lost():
    near = {"linear": [np.full(50, 0.99) + np.linspace(-0.02, 0.01, 50)]}

    places, density = lines_of(draw_agreement(near, near).axes[0])["linear"]

    assert places.max() == 1
    assert np.trapezoid(density, places) == pytest.approx(1, abs=0.02)


def test_values_that_are_all_the_same_are_drawn():
    same = {"raw": [np.full(10, 0.5)]}

    places, density = lines_of(draw_agreement(same, same).axes[0])["raw"]

    assert places[density.argmax()] == pytest.approx(0.5, abs=1e-2)
