"""What all tasks share: columns, labels, splits, weights, metrics; on small CSV files."""

import json
import math

import numpy as np
import pytest

from whet.data.audit import Audit
from whet.data.files import Files
from whet.data.split import Split
from whet.errors import ConfigError, DataError
from whet.paths import Paths
from whet.task.base import class_weights, classes, labelled, natural
from whet.task.binary import Binary
from whet.task.multi_label import MultiLabel
from whet.task.regression import Regression
from whet.task.single_label import SingleLabel

KINDS = [SingleLabel, Binary, MultiLabel, Regression]


@pytest.fixture
def paths(tmp_path):
    return Paths(cache=str(tmp_path / "cache"))


@pytest.fixture
def task(tmp_path):
    """A task over one CSV (or any other table) with the given content."""

    def make(content, kind=SingleLabel, name="rows.csv", **settings):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        settings = {"split": Split(validation=0.25, test=0.25), **settings}
        return kind(name="t", data=Files(path=str(path)), **settings)

    return make


def csv(labels, column="label"):
    return f"text,{column}\n" + "".join(f"text number {n},{label}\n" for n, label in enumerate(labels))


def decoded(corpus):
    """Label name of every text."""
    names = corpus.label_names
    return {
        texts[0]: names[label]
        for examples in corpus.splits.values()
        for texts, label in zip(examples.texts, examples.labels, strict=True)
    }


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("settings", "key", "near"),
    [
        ({"text": "txt"}, "task.text", "text"),
        ({"text": ["text", "labl"]}, "task.text", "label"),
        ({"label": "labels"}, "task.label", "label"),
        ({"id": "idd"}, "task.id", "id"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_names_the_nearest(task, paths, settings, key, near, kind):
    made = task("id,text,label\n" + "".join(f"{i},t{i},{i % 2}\n" for i in range(8)), kind, **settings)
    with pytest.raises(DataError, match=f"no such column; did you mean {near}") as caught:
        made.load(paths)
    assert caught.value.key == key


def test_ids_and_pairs(task, paths):
    content = "key,one,two,label\n" + "".join(f"k{i},a{i},b{i},{i % 2}\n" for i in range(16))
    corpus = task(content, text=["one", "two"], id="key").load(paths)
    for examples in corpus.splits.values():
        for row, texts in zip(examples.ids, examples.texts, strict=True):
            assert texts == (f"a{row[1:]}", f"b{row[1:]}")
    assert sum(map(len, corpus.splits.values())) == 16


def test_rows_without_an_id_column_are_numbered(task, paths):
    corpus = task(csv([0, 1] * 8)).load(paths)
    for examples in corpus.splits.values():
        numbers = [texts[0].rpartition(" ")[2] for texts in examples.texts]
        assert examples.ids.tolist() == [f"all-{number}" for number in numbers]


def test_one_label_column_but_for_several_labels(task):
    for kind in (SingleLabel, Binary, Regression):
        for label in (["a", "b"], []):
            with pytest.raises(ConfigError, match="one column") as caught:
                task(csv([0]), kind, label=label)
            assert caught.value.key == "label"
    with pytest.raises(ConfigError, match="label"):
        task(csv([0]), MultiLabel, label=[])
    for text in ([], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="one column or two"):
            task(csv([0]), text=text)
    assert task(csv([0]), label=["label"]).label == ["label"]


# ---------------------------------------------------------------- labels


def test_label_names_as_they_stand(task, paths):
    corpus = task(csv(["yes", " no ", "maybe", "yes"] * 5)).load(paths)
    assert corpus.label_names == ("maybe", "no", "yes")
    assert decoded(corpus)["text number 1"] == "no"


def test_the_order_of_numbers_is_numeric(task, paths):
    corpus = task(csv([10, 9, 2, "-1", "other", "nan", "inf"] * 4)).load(paths)
    assert corpus.label_names == ("-1", "2", "9", "10", "inf", "nan", "other")


def test_natural_is_a_total_order():
    names = ["b", "10", "nan", "2.5", "-3", "inf", "a", "1e3", "2"]
    expected = ["-3", "2", "2.5", "10", "1e3", "a", "b", "inf", "nan"]
    for turn in range(len(names)):
        assert sorted(names[turn:] + names[:turn], key=natural) == expected


def test_ids_get_names(task, paths):
    made = task(csv([0, 1] * 8), labels=["neg", "pos"], label_names={"0": "neg", "1": "pos"})
    corpus = made.load(paths)
    assert corpus.label_names == ("neg", "pos")
    assert {
        row: name for row, name in decoded(corpus).items() if row in ("text number 0", "text number 1")
    } == {
        "text number 0": "neg",
        "text number 1": "pos",
    }


@pytest.mark.parametrize("written", [("1.0", "0.0"), ("1", "0"), ("1.000", "0.0")])
def test_floats_are_the_same_labels(task, paths, written):
    made = task(csv(written * 8), label_names={"0": "neg", "1": "pos"})
    assert decoded(made.load(paths))["text number 0"] == "pos"
    assert task(csv(written * 8)).load(paths).label_names == ("0", "1")


def test_a_label_that_looks_like_a_float_may_be_meant(task, paths):
    made = task(csv(["1.0", "2.0"] * 8), labels=["2.0", "1.0"])
    assert decoded(made.load(paths))["text number 0"] == "1.0"
    renamed = task(csv(["1.0", "1.5"] * 8), label_names={"1.0": "old"}).load(paths)
    assert renamed.label_names == ("1.5", "old")


def test_numbers_and_booleans_of_json(task, paths):
    lines = [{"text": f"t{i}", "label": float(i % 2)} for i in range(16)]
    content = "\n".join(map(json.dumps, lines))
    assert task(content, name="a.jsonl").load(paths).label_names == ("0", "1")
    lines = [{"text": f"t{i}", "label": bool(i % 2)} for i in range(16)]
    made = task("\n".join(map(json.dumps, lines)), name="b.jsonl", label_names={"True": "yes", "False": "no"})
    assert made.load(paths).label_names == ("no", "yes")


def test_missing_labels_are_dropped(task, paths):
    lines = [{"text": f"t{i}", "label": [0.0, 1.0, None, math.nan][i % 4]} for i in range(32)]
    corpus = task("\n".join(map(json.dumps, lines)), name="a.jsonl").load(paths)
    assert corpus.label_names == ("0", "1")
    assert sum(map(len, corpus.splits.values())) == 16
    assert corpus.findings.get("all", "missing_label").count == 16
    assert sum(map(len, task(csv(["a", "", "b", "  "] * 8)).load(paths).splits.values())) == 16


def test_unknown_labels_are_refused_by_name(task, paths):
    with pytest.raises(DataError, match=r"'postive' 1×; for 'postive' did you mean positive") as caught:
        task(csv(["positive", "negative"] * 8 + ["postive"]), labels=["negative", "positive"]).load(paths)
    assert caught.value.key == "task.audit.unknown_label"


def test_what_the_audit_lets_through_has_no_class(task, paths):
    lax = Audit(unknown_label="keep", missing_label="keep")
    made = task(csv(["a", "b", "c", ""] * 8), labels=["a", "b"], audit=lax)
    labels = np.concatenate([examples.labels for examples in made.load(paths).splits.values()])
    assert sorted(set(labels.tolist())) == [-1, 0, 1]
    assert (labels == -1).sum() == 16


def test_labels_must_differ_and_be_there(task):
    with pytest.raises(ConfigError, match="labels.*differ"):
        task(csv([0]), labels=["a", "a"])
    with pytest.raises(ConfigError, match="labels.*differ"):
        task(csv([0]), MultiLabel, labels=["a", "a"])


def test_labels_come_from_the_training_rows(tmp_path, paths):
    files = {}
    for split, labels in {"train": "ab", "validation": "ab", "test": "abc"}.items():
        path = tmp_path / f"{split}.csv"
        path.write_text("text,label\n" + "".join(f"{split} {n},{name}\n" for n, name in enumerate(labels)))
        files[split] = str(path)
    with pytest.raises(DataError, match=r"unknown_label.*'c'"):
        SingleLabel(name="t", data=Files(**files)).load(paths)
    only = SingleLabel(name="t", data=Files(test=files["test"]))
    with pytest.raises(DataError, match="task.labels.*no training rows"):
        only.load(paths)


def test_errors_of_the_parts_carry_their_keys(task, paths):
    with pytest.raises(DataError) as caught:
        SingleLabel(name="t", data=Files(path="nowhere.csv")).load(paths)
    assert caught.value.key == "task.data.path"
    with pytest.raises(DataError) as caught:
        task(csv([0, 1])).load(paths)
    assert caught.value.key.startswith("task.split")


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("kind", KINDS)
def test_usual_metrics_by_default(task, kind):
    made = task(csv([0, 1]), kind)
    assert made.metrics == list(kind.usual) and made.primary == kind.usual[0]
    assert made.directions()["loss"] == "minimize"


def test_directions(task):
    made = task(csv([0, 1]), metrics=["log_loss", "accuracy"])
    assert made.primary == "log_loss"
    assert made.directions() == {"log_loss": "minimize", "accuracy": "maximize", "loss": "minimize"}
    assert task(csv([0, 1]), primary="loss").primary == "loss"


def test_unknown_metrics_and_primaries(task):
    with pytest.raises(ConfigError, match="metrics=acuracy.*did you mean accuracy"):
        task(csv([0, 1]), metrics=["acuracy"])
    with pytest.raises(ConfigError, match="metrics=rmse"):
        task(csv([0, 1]), metrics=["rmse"])
    with pytest.raises(ConfigError, match=r"primary=f1: .*task.metrics.*f1_macro"):
        task(csv([0, 1]), primary="f1")
    with pytest.raises(ConfigError, match="primary=mcc"):
        task(csv([0, 1]), metrics=["accuracy"], primary="mcc")


# ---------------------------------------------------------------- corpus


def test_sample(task, paths):
    corpus = task(csv([0, 1] * 40)).load(paths)
    few, same, other = corpus.sample(5, 1), corpus.sample(5, 1), corpus.sample(5, 2)
    for name, examples in corpus.splits.items():
        assert len(few.splits[name]) == len(few.tables[name]) == 5
        assert few.splits[name].ids.tolist() == few.tables[name].ids == same.splits[name].ids.tolist()
        places = [examples.ids.tolist().index(row) for row in few.splits[name].ids]
        assert places == sorted(places)
    assert few.splits["train"].ids.tolist() != other.splits["train"].ids.tolist()
    assert {name: len(examples) for name, examples in corpus.sample(10**6, 1).splits.items()} == {
        name: len(examples) for name, examples in corpus.splits.items()
    }
    assert few.label_names == corpus.label_names


def test_tables_and_examples_tell_the_same(task, paths):
    corpus = task(csv(["a", "b", "c"] * 10)).load(paths)
    for name, table in corpus.tables.items():
        examples = corpus.splits[name]
        assert table.ids == examples.ids.tolist() and table.texts == examples.texts
        assert table.labels == [corpus.label_names[label] for label in examples.labels]


# ---------------------------------------------------------------- weights


def test_balanced_weights_are_sklearns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights("balanced", np.append(labels, -1), ["a", "b", "c"])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[labels].mean(), 1, rtol=1e-6)


def test_weights_by_name():
    labels = np.array([0, 1, 2])
    assert class_weights({"b": 3.0}, labels, ["a", "b", "c"]).tolist() == [1, 3, 1]
    assert class_weights(None, labels, ["a", "b", "c"]) is None
    with pytest.raises(ConfigError, match="task.class_weights=bb: not a label; did you mean b"):
        class_weights({"bb": 3.0}, labels, ["a", "b", "c"])
    with pytest.raises(ConfigError, match="no training rows for d, e"):
        class_weights("balanced", labels, ["a", "b", "c", "d", "e"])


def test_classes_and_labelled():
    assert classes(["b", None, "a", "z"], ["a", "b"]).tolist() == [1, -1, 0, -1]
    assert labelled(np.array([1, -1, 0])).tolist() == [1, 0, 1]
    assert labelled(np.array([[0, 1], [-1, -1]])).tolist() == [1, 0]
