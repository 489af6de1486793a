"""Pictures: what is computed for them, by hand; that they open; that nothing global changes."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whet.evaluation import plots

DIRECTIONS = {"accuracy": "maximize"}


def records(evaluations=5):
    train = [{"step": s, "train/loss": 2 / (1 + s), "train/lr": 1e-4 * (1 - s / 100)} for s in range(100)]
    return train + [
        {
            "step": 20 * (i + 1),
            "validation/loss": 1 / (i + 1),
            "validation/accuracy": 0.5 + i / 20,
            "validation/rmse": 3.0 - i,
        }
        for i in range(evaluations)
    ]


def looked_at(path):
    with Image.open(path) as image:
        return image.size, len(image.convert("RGB").getcolors(1 << 24))


def test_series_are_ordered_and_finite():
    found = plots.series(
        [
            {"step": 2, "train/loss": 1.0, "note": "x", "epoch": 1},
            {"step": 1, "train/loss": 3.0, "validation/mcc": float("nan")},
            {"step": 2, "train/loss": 2.0, "validation/mcc": None},
            {"train/loss": 9.0},
        ]
    )
    assert found == {"train/loss": [(1.0, 3.0), (2.0, 2.0)]}


@pytest.mark.parametrize(("evaluations", "panels"), [(5, 4), (1, 4), (0, 2)])
def test_learning_curves(tmp_path, evaluations, panels):
    path = plots.learning_curves(records(evaluations), tmp_path / "a" / "curves.png", DIRECTIONS)
    size, colours = looked_at(path)
    assert size == (1200, round((0.6 + 2.5 * panels) * 150))
    assert colours > 50
    assert [one.name for one in path.parent.iterdir()] == ["curves.png"]


def test_learning_curves_of_nothing_say_so(tmp_path):
    assert looked_at(plots.learning_curves([], tmp_path / "curves.png"))[1] > 5


def test_only_a_declared_direction_marks_a_best_point(tmp_path):
    """No mark is guessed from a metric's name; with a direction the picture differs by it."""
    line = [{"step": i, "validation/score": float(i % 3) / 3} for i in range(1, 8)]
    drawn = {
        goal: plots.learning_curves(
            line, tmp_path / f"{goal}.png", {"score": goal} if goal else {}
        ).read_bytes()
        for goal in ("", "maximize", "minimize")
    }
    assert len(set(drawn.values())) == 3


def test_best_is_the_first_of_equals():
    points = [(1.0, 0.2), (2.0, 0.9), (3.0, 0.9), (4.0, 0.2)]
    assert plots.best(points, "maximize") == (2.0, 0.9)
    assert plots.best(points, "minimize") == (1.0, 0.2)


def test_smoothing_keeps_constants_and_calms_noise():
    assert plots.smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(plots.smooth(noise.tolist())[50:]) < 0.4
    assert plots.smooth([5.0]) == [5.0]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=25).filter(
        lambda r: any(t for t, _ in r)
    )
)
@settings(max_examples=60, deadline=None)
def test_pr_curve_by_counting(rows):
    truth, scores = np.array([t for t, _ in rows]), np.array([s / 5 for _, s in rows])
    recall, precision, area = plots.pr_curve(truth, scores)
    thresholds = sorted(set(scores.tolist()), reverse=True)
    taken = [truth[scores >= threshold] for threshold in thresholds]
    assert recall.tolist() == pytest.approx([sum(t) / sum(truth) for t in taken])
    assert precision.tolist() == pytest.approx([sum(t) / len(t) for t in taken])
    steps = [after - before for before, after in pairwise([0.0, *recall.tolist()])]
    assert area == pytest.approx(sum(s * p for s, p in zip(steps, precision, strict=True)))


def test_confusion_cells_are_shaded_by_share_of_row(tmp_path):
    counts = np.array([[90, 10], [0, 1000]])
    path = plots.confusion_matrix(counts, ["a", "b"], tmp_path / "c.png")
    other = plots.confusion_matrix(counts * [[10], [1]], ["a", "b"], tmp_path / "d.png")
    assert looked_at(path)[0] == looked_at(other)[0]
    with Image.open(path) as image, Image.open(other) as again:
        a, b = (np.asarray(one.convert("RGB")).astype(int) for one in (image, again))
    assert (a != b).any(axis=2).mean() < 0.02  # the written counts alone differ


def test_names_that_no_font_can_draw_become_numbers():
    names = plots.readable(["plain", "\U0010fffd", "cost $5", "n" * 40])
    assert names[:3] == ["plain", "class 1", r"cost \$5"]
    assert len(names[3]) == plots.NAME


def test_extremes_are_drawn(tmp_path):
    assert looked_at(plots.scatter(np.array([1.0]), np.array([1.0]), tmp_path / "one.png"))[1] > 5
    gaps = np.array([1.0, np.nan, 3.0])
    assert looked_at(plots.scatter(np.array([1.0, 2.0, 3.0]), gaps, tmp_path / "gaps.png"))[1] > 5
    none = plots.pr_curves(np.zeros((3, 2), bool), np.full((3, 2), 0.5), ["a", "b"], tmp_path / "none.png")
    assert looked_at(none)[1] > 5


def test_no_pyplot_and_no_global_settings(tmp_path):
    import matplotlib

    before, loaded = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    plots.learning_curves(records(), tmp_path / "curves.png", DIRECTIONS)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
