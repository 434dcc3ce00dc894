import numpy as np
import pytest
from matplotlib.text import Annotation

from elev_ssl_jax import pictures


def drawn(monkeypatch, draw, *arguments):
    """What a function draws: its figure, before that is written."""
    kept = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: kept.append(figure))
    draw("nowhere.png", *arguments)
    (figure,) = kept
    return figure


def test_what_models_say_of_chips_is_told_in_words_and_errors_in_red(monkeypatch, rng):
    images = rng.random((3, 8, 8, 3))
    true, said = np.array([0, 1, 1], np.uint8), {"one": np.array([0, 1, 0], np.uint8)}
    figure = drawn(monkeypatch, pictures.draw_classes, images, true, said, ("forest", "water"))
    texts = [
        [(t.get_text(), t.get_color()) for t in axis.findobj(Annotation)] for axis in figure.axes
    ]
    assert texts == [
        [("true: forest", "black"), ("one: forest", "black")],
        [("true: water", "black"), ("one: water", "black")],
        [("true: water", "black"), ("one: forest", "tab:red")],
    ]


def test_of_classes_that_are_there_together_all_are_told(monkeypatch, rng):
    true = np.array([[1, 0, 1], [0, 0, 0]], np.uint8)
    figure = drawn(
        monkeypatch,
        *(pictures.draw_classes, rng.random((2, 8, 8, 3)), true, {}, ("a", "b", "c")),
    )
    assert [axis.findobj(Annotation)[0].get_text() for axis in figure.axes] == [
        "true: a + c",
        "true: none",
    ]


def test_a_forest_has_a_row_for_each_difference_with_its_repetitions(monkeypatch):
    rows = [
        pictures.ForestRow("one - two", 2.0, (1.0, 3.0), (1.5, 2.5), True),
        pictures.ForestRow("one - three", -1.0, (np.nan, np.nan), (-1.0,), None),
    ]
    (axis,) = drawn(monkeypatch, pictures.draw_forest, rows, "points").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one - two", "one - three"]
    places = [sorted(line.get_xdata()) for line in axis.lines]
    assert [1.5, 2.5] in places
    assert [1.0, 3.0] in places
    low, high = axis.get_ylim()
    assert low > high  # the first row is on top


def test_what_is_true_and_what_is_predicted_have_one_scale_beside_them(monkeypatch, rng):
    true, predicted = rng.uniform(100, 900, (2, 3, 4, 4))
    true[1, :2] = np.nan
    reliefs = true - np.nanmean(true), predicted - predicted.mean()
    arguments = (rng.random((3, 8, 8, 3)), true, predicted, *reliefs)
    figure = drawn(monkeypatch, pictures.draw_field, *arguments)
    rows = np.reshape(figure.axes, (3, 5))
    assert [a.get_title() for a in rows[0, 1:3]] == ["true elevation (m)", "predicted (m)"]
    for i, row in enumerate(rows):
        ends = [axis.images[0].get_clim() for axis in row[1:]]
        low, high = np.nanmin([true[i], predicted[i]]), np.nanmax([true[i], predicted[i]])
        assert ends[0] == ends[1] == (low, high)
        assert ends[2] == ends[3] == (-ends[2][1], ends[2][1])
        scales = [axis.child_axes for axis in row]
        assert [len(found) for found in scales] == [0, 0, 1, 0, 1]
        assert scales[2][0].get_ylim() == pytest.approx(ends[1])
