"""Figures of a run's course, against its log."""

from __future__ import annotations

import math

from whet.evaluation.plots import smooth
from whet.review.curves import CROWDED, course, overlay

ROWS = [
    {"step": 1, "time": 0.0, "train/loss": 2.0, "train/lr": 1e-3, "train/grad_norm": 5.0},
    {"step": 2, "time": 1.0, "train/loss": 1.0, "train/lr": 2e-3, "train/grad_norm": 0.01},
    {"step": 2, "time": 1.0, "validation/loss": 0.9, "validation/accuracy": 0.5, "validation/mae": 7.0},
    {"step": 4, "time": 2.0, "train/loss": math.nan, "train/lr": 1e-3, "train/grad_norm": 1.0},
    {"step": 4, "time": 2.0, "validation/loss": 1.1, "validation/accuracy": 0.75, "validation/mae": 5.0},
]
WAYS = {"loss": "minimize", "accuracy": "maximize", "mae": "minimize"}


def by_title(figures):
    return {figure.layout.title.text: figure for figure in figures}


def test_every_figure_of_the_log_is_drawn():
    found = by_title(course(ROWS, WAYS, best_step=4))
    assert list(found) == [
        "Loss in training and on validation", "Metrics on validation", "Further metrics on validation",
        "Learning rate", "Length of the gradient before clipping",
    ]  # fmt: skip
    train, validation, *_ = found["Loss in training and on validation"].data
    assert (train.x, train.y) == ((1, 2), (2.0, 1.0)), "what isn't a number is left out"
    assert (validation.name, validation.x, validation.y) == ("validation/loss", (2, 4), (0.9, 1.1))
    accuracy = found["Metrics on validation"].data[0]
    assert (accuracy.name, accuracy.y) == ("accuracy", (0.5, 0.75))
    assert found["Further metrics on validation"].data[0].y == (7.0, 5.0)
    assert found["Learning rate"].data[0].y == (1e-3, 2e-3, 1e-3)
    assert found["Length of the gradient before clipping"].layout.yaxis.type == "log"
    assert found["Learning rate"].layout.yaxis.type == "linear"


def test_stars_stand_at_the_best_by_the_tasks_direction():
    found = by_title(course(ROWS, WAYS))
    stars = [each for figure in found.values() for each in figure.data if each.marker.symbol == "star"]
    assert [(each.x, each.y) for each in stars] == [((2,), (0.9,)), ((4,), (0.75,)), ((4,), (5.0,))]
    assert not any(each.layout.shapes for each in found.values())


def test_the_kept_checkpoint_is_marked():
    for figure in course(ROWS, WAYS, best_step=4):
        assert [shape.x0 for shape in figure.layout.shapes] == [4]
        assert figure.layout.annotations[0].text == "kept: step 4"


def test_crowded_noise_is_smoothed_over_its_points():
    count = CROWDED + 10
    rows = [{"step": n, "train/loss": float(n % 7), "train/lr": n * 1e-5} for n in range(count)]
    loss, rate = course(rows, {})
    raw, smoothed = loss.data
    values = [float(n % 7) for n in range(count)]
    assert list(raw.y) == values
    assert list(smoothed.y) == smooth(values)
    assert (raw.showlegend, raw.opacity) == (False, 0.3)
    assert [list(each.y) for each in rate.data] == [[n * 1e-5 for n in range(count)]], "no noise: as it is"


def test_nothing_logged_nothing_drawn():
    assert course([], WAYS) == []


def test_overlay_has_a_colour_a_group():
    curves = {"a": [(1, 0.5)], "b": [(1, 0.6)], "c": [(2, 0.7)]}
    figure = overlay(curves, {"a": "none", "b": "lora", "c": "none"}, "Loss", "loss")
    assert [each.y for each in figure.data] == [(0.5,), (0.6,), (0.7,)]
    assert [each.text for each in figure.data] == ["a", "b", "c"]
    colours = [each.line.color for each in figure.data]
    assert colours[0] == colours[2] != colours[1]
    assert [each.showlegend for each in figure.data] == [True, True, False]
    assert [each.name for each in figure.data] == ["none", "lora", "none"]
