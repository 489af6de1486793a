"""Several labels a text: three ways to write them, one loss."""

import json

import numpy as np
import pytest
import torch

from whet.data.files import Files
from whet.data.split import Split
from whet.errors import ConfigError, DataError
from whet.paths import Paths
from whet.task.multi_label import MultiLabel

NAMES = ("a", "b", "c")


def task(path="unused.csv", **settings):
    return MultiLabel(
        name="t", data=Files(path=str(path)), split=Split(validation=0.25, test=0.25), **settings
    )


def load(tmp_path, content, name="rows.csv", **settings):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    corpus = task(path, **settings).load(Paths(cache=str(tmp_path / "cache")))
    found = {}
    for examples in corpus.splits.values():
        for texts, row in zip(examples.texts, examples.labels, strict=True):
            found[int(texts[0][1:])] = {n for n, on in zip(corpus.label_names, row, strict=True) if on}
    return corpus, found


SETS = [{"a", "c"}, {"b"}, set(), {"a", "b", "c"}] * 6


def written(kind, missing=""):
    if kind == "jsonl":
        return "\n".join(json.dumps({"text": f"t{i}", "label": sorted(s)}) for i, s in enumerate(SETS))
    if kind == "columns":
        rows = (",".join(str(int(n in s)) for n in NAMES) for s in SETS)
        return "text,a,b,c\n" + "".join(f"t{i},{row}\n" for i, row in enumerate(rows))
    return "text,label\n" + "".join(f"t{i},{'| '.join(sorted(s))}\n" for i, s in enumerate(SETS))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("jsonl", {}), ("columns", {"label": list(NAMES)}), ("separated", {"separator": "|"})],
)
def test_three_ways_to_write_the_same(tmp_path, kind, settings):
    corpus, found = load(tmp_path, written(kind), f"rows.{'jsonl' if kind == 'jsonl' else 'csv'}", **settings)
    assert corpus.label_names == NAMES
    assert [found[i] for i in range(len(SETS))] == SETS
    assert all(examples.labels.dtype == np.float32 for examples in corpus.splits.values())


def test_columns_get_names_and_an_order(tmp_path):
    named = {"a": "angry", "b": "bored", "c": "calm"}
    corpus, found = load(tmp_path, written("columns"), label=list(NAMES), label_names=named)
    assert corpus.label_names == ("angry", "bored", "calm")
    assert found[0] == {"angry", "calm"}
    turned, found = load(tmp_path, written("columns"), label=list(NAMES), labels=["c", "b", "a"])
    assert turned.label_names == ("c", "b", "a") and found[0] == {"a", "c"}


def test_numbers_sort_as_numbers(tmp_path):
    content = "text,label\n" + "".join(f'"t{i}","10,9,{i % 3}"\n' for i in range(24))
    assert load(tmp_path, content)[0].label_names == ("0", "1", "2", "9", "10")


@pytest.mark.parametrize("yes", ["1", "1.0", "true", "True", "yes"])
@pytest.mark.parametrize("no", ["0", "0.0", "False", "no"])
def test_words_for_truth(tmp_path, yes, no):
    content = "text,a,b\n" + "".join(f"t{i},{yes if i % 2 else no},{no}\n" for i in range(24))
    _, found = load(tmp_path, content, label=["a", "b"])
    assert all(found[i] == ({"a"} if i % 2 else set()) for i in range(24))


def test_anything_else_in_a_column_is_an_error(tmp_path):
    content = written("columns").replace("t3,1,1,1", "t3,1,2,1")
    with pytest.raises(DataError, match="task.label=2: column b must hold 0 or 1"):
        load(tmp_path, content, label=list(NAMES))


def test_missing_labels_are_not_no_labels(tmp_path):
    content = written("columns").replace("t3,1,1,1", "t3,1,,1")
    corpus, found = load(tmp_path, content, label=list(NAMES))
    assert set(range(len(SETS))) - set(found) == {3}
    assert corpus.findings.get("all", "missing_label").count == 1
    lines = written("jsonl").replace('"label": ["b"]', '"label": null')
    assert len(load(tmp_path, lines, "rows.jsonl")[1]) == len(SETS) - 6


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="unknown_label"):
        load(tmp_path, written("jsonl"), "rows.jsonl", labels=["a", "b"])


# ---------------------------------------------------------------- loss

LOGITS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) * 2
LABELS = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]], dtype=np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, {"b": 4.0}, {"a": 0.5, "c": 2.0}])
def test_loss_by_the_formula(smoothing, weights):
    criterion = task(label_smoothing=smoothing, positive_weights=weights).criterion(LABELS, NAMES)
    losses = criterion.losses(LOGITS, torch.from_numpy(LABELS))
    w = np.array([(weights or {}).get(name, 1.0) for name in NAMES])
    p = 1 / (1 + np.exp(-LOGITS.double().numpy()))
    t = LABELS * (1 - smoothing) + smoothing / 2
    expected = (-w * t * np.log(p) - (1 - t) * np.log(1 - p)).mean(axis=1)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)
    assert criterion.weights(LABELS).tolist() == [1] * 5


def test_rows_without_labels_count_for_nothing():
    criterion = task().criterion(LABELS, NAMES)
    labels = LABELS.copy()
    labels[2] = -1
    losses = criterion.losses(LOGITS, torch.from_numpy(labels))
    assert losses[2] == 0 and (losses[[0, 1, 3, 4]] > 0).all()
    assert criterion.weights(labels).tolist() == [1, 1, 0, 1, 1]
    assert task().encode([["a"], None, ["z"]], NAMES).tolist() == [[1, 0, 0], [-1, -1, -1], [-1, -1, -1]]


def test_decisions_and_descriptions():
    made = task(threshold=0.6)
    p = made.probabilities(LOGITS.numpy())
    np.testing.assert_allclose(p, torch.sigmoid(LOGITS.double()).numpy(), rtol=1e-6)
    assert made.decide(p).tolist() == (p >= 0.6).astype(float).tolist()
    assert made.decide(p).tolist() != task(threshold=0.2).decide(p).tolist()
    told = made.describe(p, NAMES)
    given = [{n for n, on in zip(NAMES, row, strict=True) if on} for row in p >= 0.6]
    assert [set(item["label"]) for item in told] == given


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="task.positive_weights=bb: not a label; did you mean b"):
        task(positive_weights={"bb": 1.0}).criterion(LABELS, NAMES)
    with pytest.raises(ConfigError, match="separator"):
        task(separator="")
    with pytest.raises(ConfigError, match="no labels"):
        task().head([])
    assert task().head(NAMES).outputs == 3
