"""Reports against counts by hand: JSON parses back, tables agree, pictures open and show something."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from whet.errors import RunError
from whet.evaluation.describe import width
from whet.evaluation.predictions import Predictions
from whet.evaluation.report import make_report, write_report
from whet.storage import aside


def predictions(labels, names, split="test", ids=None):
    labels = np.asarray(labels)
    ids = ids or [f"行{i}" for i in range(len(labels))]
    return Predictions(np.array(ids), np.zeros((len(labels), 1), np.float32), labels, split, tuple(names))


def written(said, kind, chances, decisions, metrics, directions, folder, texts=None):
    """The report made and written."""
    report = make_report(said, kind, chances, decisions, metrics, directions, texts)
    write_report(report, said, chances, folder)
    return report


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.fixture
def five():
    """Two classes by hand: of five rows two are `好` taken for `bad|one`; a sixth has no label."""
    chances = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9], [0.5, 0.5]])
    said = predictions([0, 1, 1, 1, 1, -1], ["bad|one", "好"])
    return said, chances, chances.argmax(axis=1)


TEXTS = ["fine", "很好看 | 推荐", "c", "😀 <b>bold</b>\nnew line", "e", "f"]


def test_json_by_hand(five, tmp_path):
    said, chances, decisions = five
    metrics = {"accuracy": 0.6, "roc_auc": math.nan}
    report = written(
        said, "single_label", chances, decisions, metrics, {"accuracy": "maximize"}, tmp_path, TEXTS
    )
    found = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))
    assert (found["n"], found["unlabelled"], found["kind"]) == (5, 1, "single_label")
    assert found["metrics"] == {"accuracy": 0.6, "roc_auc": None}
    assert found["confusion"] == {"labels": ["bad|one", "好"], "counts": [[1, 0], [2, 2]]}
    bad, good = found["classes"]
    assert bad == {
        "name": "bad|one",
        "precision": 1 / 3,
        "recall": 1.0,
        "f1": 0.5,
        "support": 1,
        "predicted": 3,
    }
    assert good == {"name": "好", "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 4, "predicted": 2}
    assert found["balance"] == {"bad|one": {"count": 1, "share": 0.2}, "好": {"count": 4, "share": 0.8}}
    assert [(one["id"], one["probability"]) for one in found["worst"]] == [("行3", 0.7), ("行1", 0.6)]
    assert found["worst"][0] | {"probability": 0} == {
        "id": "行3",
        "text": TEXTS[3],
        "true": "好",
        "predicted": "bad|one",
        "probability": 0,
    }
    assert report.to_dict() == found
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "test.json",
        "test.md",
        "test_confusion.png",
        "test_pr.png",
    ]


def test_markdown_tables_hold_together(five, tmp_path):
    said, chances, decisions = five
    written(
        said, "single_label", chances, decisions, {"accuracy": 0.6}, {"accuracy": "maximize"}, tmp_path, TEXTS
    )
    text = (tmp_path / "test.md").read_text(encoding="utf-8")
    for block in text.split("\n## ")[1:]:
        title, _, *rows = block.strip().split("\n")
        cells = {row.replace(r"\|", "").count("|") for row in rows}
        assert len(cells) == 1, (title, rows)
    assert r"| 行3 | 好 | bad\|one | 0.7000 | 😀 &lt;b>bold&lt;/b> new line |" in text
    assert "| accuracy | 0.6000 | higher is better |" in text


def test_terminal_table(five):
    said, chances, decisions = five
    metrics = {"accuracy": 0.6, "log_loss": 0.5, "roc_auc": math.nan}
    directions = {"accuracy": "maximize", "log_loss": "minimize"}
    text = make_report(said, "single_label", chances, decisions, metrics, directions).text()
    assert text.splitlines()[0] == "test: 5 rows (1 more without a label)"
    assert "accuracy     0.6000  higher is better" in text
    assert "log_loss     0.5000  lower is better" in text
    assert "roc_auc   undefined" in text
    rows = [line for line in text.splitlines() if line.strip().startswith(("class", "bad|one", "好", "true"))]
    assert len(rows) == 2 * 3
    assert len({width(row) for row in rows[:3]}) == len({width(row) for row in rows[3:]}) == 1
    assert rows[4].split() == ["bad|one", "1", "0"]
    assert rows[5].split() == ["好", "2", "2"]


@given(st.integers(0, 999), st.integers(2, 40), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_counts_agree_with_loops_and_lines_fit(seed, classes, n):
    rng = np.random.default_rng(seed)
    chances = softmax(rng.normal(size=(n, classes)))
    labels, decisions = rng.integers(0, classes, n), chances.argmax(axis=1)
    names = [f"{'标签' * (i % 9)}{i}" for i in range(classes)]
    report = make_report(
        predictions(labels, names), "single_label", chances, decisions, {"mcc": 1234567.0}, {}
    )
    for t in range(classes):
        for p in range(classes):
            assert report.confusion[t][p] == sum((labels == t) & (decisions == p))
        one = report.classes[t]
        assert (one.support, one.predicted) == (sum(labels == t), sum(decisions == t))
        assert one.f1 == pytest.approx(2 * report.confusion[t][t] / max(1, one.support + one.predicted))
    wrong = [i for i in range(n) if labels[i] != decisions[i]]
    ranked = sorted(wrong, key=lambda i: (-chances[i, decisions[i]], i))[:20]
    assert [one.id for one in report.worst] == [f"行{i}" for i in ranked]
    assert max(width(line) for line in report.text().splitlines()) <= 100
    assert ("true\\predicted" in report.text()) == (classes <= 12)
    assert ("of lowest F1" in report.text()) == (classes > 30)


def test_binary_has_one_probability_and_two_classes(tmp_path):
    chances = np.array([0.9, 0.2, 0.7, 0.4])
    said = predictions([1, 1, 0, 0], ["no", "yes"])
    report = written(said, "binary", chances, (chances >= 0.5).astype(int), {}, {}, tmp_path)
    assert report.confusion == [[1, 1], [1, 1]]
    assert [(one.id, one.predicted) for one in report.worst] == [("行1", "no"), ("行2", "yes")]
    assert [one.probability for one in report.worst] == pytest.approx([0.8, 0.7])
    assert report.worst[0].text is None


def test_decisions_need_not_be_the_argmax():
    chances = np.array([[0.9, 0.1], [0.8, 0.2]])
    report = make_report(predictions([0, 0], "ab"), "single_label", chances, np.array([1, 0]), {}, {})
    assert report.confusion == [[1, 1], [0, 0]]
    assert report.worst[0].probability == pytest.approx(0.1)


def test_multi_label(tmp_path):
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=np.float32)
    chances = np.array([[0.9, 0.6, 0.8], [0.1, 0.2, 0.95], [0.7, 0.9, 0.3]])
    decided = (chances >= 0.5).astype(np.float32)
    report = written(predictions(labels, ["甲", "b", "c"]), "multi_label", chances, decided, {}, {}, tmp_path)
    assert report.confusion is None
    assert [(one.support, one.predicted, one.precision) for one in report.classes] == [
        (2, 2, 1.0),
        (1, 2, 0.5),
        (1, 2, 0.5),
    ]
    assert [(one.id, one.true, one.predicted) for one in report.worst] == [
        ("行1", [], ["c"]),
        ("行0", ["甲", "c"], ["甲", "b", "c"]),
    ]
    assert [one.probability for one in report.worst] == pytest.approx([0.95, 0.6])
    assert "(none)" in (tmp_path / "test.md").read_text(encoding="utf-8")
    assert not (tmp_path / "test_confusion.png").exists()


def test_regression(tmp_path):
    labels, values = np.array([1, 2, np.nan, 4], dtype=np.float32), np.array([1.5, 2.0, 9.0, 1.0])
    report = written(
        predictions(labels, []), "regression", values, values, {"mae": 1.0}, {"mae": "minimize"}, tmp_path
    )
    found = json.loads((tmp_path / "test.json").read_text())
    assert (found["n"], found["unlabelled"]) == (3, 1)
    assert [(one["id"], one["true"], one["predicted"]) for one in found["worst"]][:2] == [
        ("行3", 4, 1),
        ("行0", 1, 1.5),
    ]
    assert found["residuals"]["p50"] == pytest.approx(0.0)
    assert found["residuals"]["max"] == pytest.approx(0.5)
    assert "predicted - true" in report.text()
    assert not (tmp_path / "test_pr.png").exists()


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_without_labels_there_is_nothing_to_report(labels, tmp_path):
    said = Predictions(
        np.array(["a", "b"]),
        np.zeros((2, 2), np.float32),
        np.array(labels, dtype=np.int64),
        "test",
        ("x", "y"),
    )
    with pytest.raises(RunError, match="test: not one row has a label"):
        written(said, "single_label", np.full((2, 2), 0.5), np.array([0, 0]), {}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_whole(five, tmp_path, monkeypatch):
    said, chances, decisions = five
    written(said, "single_label", chances, decisions, {"a": 1.0}, {}, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written(said, "single_label", chances, decisions, {"a": 1.0}, {}, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="disk"), aside(tmp_path / "test.json") as beside:
        beside.write_text("half")
        raise OSError("disk")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_pictures_open_and_show_something(tmp_path):
    rng = np.random.default_rng(0)
    for classes, confusion in ((3, True), (12, True), (60, True), (61, False)):
        chances = softmax(rng.normal(size=(300, classes)))
        said = predictions(
            rng.integers(0, classes, 300), [f"很长的类别名称 $x_{i}$" for i in range(classes)], f"s{classes}"
        )
        written(said, "single_label", chances, chances.argmax(axis=1), {}, {}, tmp_path)
        picture = tmp_path / f"s{classes}_confusion.png"
        assert picture.exists() == confusion
        for path in (picture, tmp_path / f"s{classes}_pr.png") if confusion else ():
            with Image.open(path) as image:
                assert 500 <= image.width <= 2800 and 400 <= image.height <= 2500
                assert len(image.convert("RGB").getcolors(1 << 24)) > 20
