import numpy as np
from matplotlib.collections import PathCollection

from momacli.figures.embedding import draw_embedding


def drawn():
    draw = np.random.default_rng(0)
    places = [draw.normal(size=(6, 2)).astype(np.float32) for _ in range(3)]
    labels = np.array([0, 1, 2, 0, 1, 2])
    figure = draw_embedding(*places, labels, classes=3, before="before", after="after")
    panels = [
        [item for item in axes.collections if isinstance(item, PathCollection)]
        for axes in figure.axes
    ]
    return places, panels


def test_the_fine_tuned_points_are_at_the_same_places_before_and_after():
    (finetuned, merged, aligned), (before, after) = drawn()

    for (first, second), moved in ((before, merged), (after, aligned)):
        np.testing.assert_array_equal(first.get_offsets(), finetuned)
        np.testing.assert_array_equal(second.get_offsets(), moved)


def test_kinds_differ_in_shape_and_classes_in_darkness():
    _, ((finetuned, merged), _) = drawn()

    shapes = [item.get_paths()[0].vertices.shape for item in (finetuned, merged)]
    assert shapes[0] != shapes[1]
    for item in (finetuned, merged):
        luminance = item.get_facecolors()[:3, :3] @ [0.2126, 0.7152, 0.0722]
        assert luminance[0] > luminance[1] > luminance[2]
        assert luminance[0] < 0.85  # still seen on white
