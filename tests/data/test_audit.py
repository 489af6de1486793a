"""The audit against a brute-force reading of its own definitions, and each policy by hand."""

import json
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config import build, complete
from whet.data.audit import KINDS, Audit, normalise
from whet.data.table import Table
from whet.errors import ConfigError, DataError

KEEP = dict.fromkeys(KINDS, "keep")


def table(*rows, split="r"):
    """Rows of (text, label)."""
    return Table(
        [f"{split}{i}" for i in range(len(rows))], [(text,) for text, _ in rows], [label for _, label in rows]
    )


def rows_of(findings, split, kind):
    return findings.get(split, kind).count


# ---------------------------------------------------------------- normal form


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello,  World!", "hello world"),
        ("ＦＵＬＬ width", "full width"),
        ("Straße", "STRASSE"),
        ("很好，看。", "很好看"),
        ("a , b", "a, b"),
        ("zero\u200bwidth", "zerowidth"),
        ("line\nbreak\u3000x", "line break x"),
        ("“quoted”", '"quoted"'),
    ],
)
def test_same_normal_form(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("😀", "😡"), ("?!", "..."), ("$5", "€5"), ("。。", "！"), ("a b", "ab")]
)
def test_different_normal_form(one, other):
    assert normalise(one) != normalise(other)


@given(st.text(max_size=30))
@settings(max_examples=80, deadline=None)
def test_normal_form_never_loses_a_text(text):
    form = normalise(text)
    assert bool(form) == bool(text.split())
    assert form == " ".join(form.split())


# ---------------------------------------------------------------- against brute force

TEXTS = st.sampled_from(["a", "A", "a!", "b", "b b", "B  b", "?", "!", "", " ", "😀", "好", "好。"])
LABELS = st.sampled_from(["x", "y", "z", None])
TABLES = st.lists(st.tuples(TEXTS, LABELS), max_size=12)


def brute_alone(rows, known):
    kinds = {"empty": set(), "missing_label": set(), "unknown_label": set()}
    for i, (text, label) in enumerate(rows):
        if text.strip() == "":
            kinds["empty"].add(i)
        elif label is None:
            kinds["missing_label"].add(i)
        elif label not in known:
            kinds["unknown_label"].add(i)
    return kinds


def brute_within(rows):
    kinds = {"duplicates": set(), "near_duplicates": set(), "contradictions": set()}
    for (i, (text, label)), (j, (other, its)) in combinations(enumerate(rows), 2):
        if text == other and label == its:
            kinds["duplicates"].add(j)
        if normalise(text) == normalise(other) and label is not None and its is not None and label != its:
            kinds["contradictions"] |= {i, j}
    for (_, (text, label)), (j, (other, its)) in combinations(enumerate(rows), 2):
        if normalise(text) == normalise(other) and label == its and j not in kinds["duplicates"]:
            kinds["near_duplicates"].add(j)
    return kinds


@given(TABLES)
@settings(max_examples=80, deadline=None)
def test_findings_agree_with_brute_force(rows):
    kept, findings = Audit(**KEEP).run({"train": table(*rows)}, ["x", "y"])
    expected = brute_alone(rows, ["x", "y"]) | brute_within(rows)
    assert {kind: rows_of(findings, "train", kind) for kind in expected} == {
        k: len(v) for k, v in expected.items()
    }
    assert kept["train"].ids == [f"r{i}" for i in range(len(rows))]


@given(TABLES, st.sampled_from(["empty", "missing_label", "duplicates", "near_duplicates", "contradictions"]))
@settings(max_examples=80, deadline=None)
def test_dropping_one_kind_drops_just_those_rows(rows, kind):
    rows = [*rows, ("unlike the others", "x")]
    expected = (brute_alone(rows, ["x", "y", "z"]) | brute_within(rows))[kind]
    kept, findings = Audit(**KEEP | {kind: "drop"}).run({"train": table(*rows)}, ["x", "y", "z"])
    assert kept["train"].ids == [f"r{i}" for i in range(len(rows)) if i not in expected]
    assert findings.get("train", kind).dropped == len(expected)


@given(TABLES, TABLES, TABLES)
@settings(max_examples=80, deadline=None)
def test_leaks_leave_train_and_validation_alone_never_test(train, validation, test):
    given_rows = {
        "train": [*train, ("t", "x")],
        "validation": [*validation, ("v", "x")],
        "test": [*test, ("w", "x")],
    }
    splits = {name: table(*rows, split=name) for name, rows in given_rows.items()}
    kept, findings = Audit(**KEEP | {"leaks": "drop"}).run(splits, None)
    forms = {name: {normalise(text) for text, _ in rows} for name, rows in given_rows.items()}
    assert kept["test"].ids == splits["test"].ids
    for name, later in (("validation", forms["test"]), ("train", forms["test"] | forms["validation"])):
        stays = [f"{name}{i}" for i, (text, _) in enumerate(given_rows[name]) if normalise(text) not in later]
        assert kept[name].ids == stays
        assert rows_of(findings, name, "leaks") == len(given_rows[name]) - len(stays)


@given(TABLES, TABLES)
@settings(max_examples=40, deadline=None)
def test_a_second_audit_finds_nothing_to_drop_and_input_is_untouched(train, test):
    splits = {"train": table(*train, ("t", "x")), "test": table(*test, ("w", "x"), split="q")}
    before = {name: (list(one.ids), list(one.texts), list(one.labels)) for name, one in splits.items()}
    audit = Audit(unknown_label="drop")
    kept, _ = audit.run(splits, ["x", "y"])
    again, findings = audit.run(kept, ["x", "y"])
    assert {n: t.ids for n, t in again.items()} == {n: t.ids for n, t in kept.items()}
    assert all(one.dropped == 0 for one in findings.found)
    assert before == {name: (one.ids, one.texts, one.labels) for name, one in splits.items()}


# ---------------------------------------------------------------- by hand


def test_a_row_dropped_from_test_is_no_leak():
    splits = {"train": table(("same", "x"), ("other", "y")), "test": table(("same", None), ("w", "x"))}
    kept, findings = Audit().run(splits, ["x", "y"])
    assert len(kept["train"]) == 2
    assert rows_of(findings, "train", "leaks") == 0


def test_pairs_compare_whole_and_one_empty_half_is_empty():
    pairs = Table(["a", "b", "c"], [("p", "q"), ("p", "r"), ("p", " ")], ["x", "y", "x"])
    kept, findings = Audit().run({"train": pairs}, ["x", "y"])
    assert kept["train"].ids == ["a", "b"]
    assert rows_of(findings, "train", "contradictions") == 0


def test_multi_label_rows():
    many = Table(
        ["a", "b", "c", "d"], [("p",), ("q",), ("p",), ("r",)], [["x", "y"], [], ["y", "x"], ["x", "w"]]
    )
    kept, findings = Audit(unknown_label="drop").run({"train": many}, ["x", "y"])
    assert kept["train"].ids == ["a", "b", "c"]  # no label at all is an answer, not a gap
    assert rows_of(findings, "train", "duplicates") == 1
    assert rows_of(findings, "train", "contradictions") == 0


def test_regression_needs_no_names_but_drops_nan():
    numbers = Table(["a", "b", "c"], [("p",), ("q",), ("p",)], [1.0, float("nan"), 2.5])
    kept, findings = Audit().run({"train": numbers}, None)
    assert kept["train"].ids == ["a", "c"]
    assert rows_of(findings, "train", "contradictions") == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_can_refuse_and_says_what_to_do(kind):
    rows = [
        ("", "x"),
        ("n", None),
        ("u", "yy"),
        ("d", "x"),
        ("d", "x"),
        ("D.", "x"),
        ("d", "y"),
        ("leak", "x"),
    ]
    splits = {"train": table(*rows), "test": table(("leak", "y"))}
    with pytest.raises(DataError, match=rf"^{kind}=refuse: .*of train.*{kind}=drop") as caught:
        Audit(**KEEP | {kind: "refuse"}).run(splits, ["x", "y"])
    assert caught.value.key == kind
    assert (f"{kind}=keep" in str(caught.value)) == (kind not in ("missing_label", "unknown_label"))


def test_unknown_label_names_the_nearest_and_counts():
    splits = {"train": table(("great film", "postive"), ("bad", "negative"), ("ok", "postive"))}
    with pytest.raises(DataError) as caught:
        Audit().run(splits, ["positive", "negative"])
    for part in ("2 rows of train", "'postive' 2×", "did you mean positive?", "r0 'great film'"):
        assert part in str(caught.value)


def test_an_emptied_split_is_an_error():
    with pytest.raises(DataError, match="missing_label=drop: left nothing of test: 2 of 2 rows"):
        Audit().run({"train": table(("a", "x")), "test": table(("b", None), ("c", None))}, ["x"])


def test_summary_and_json():
    rows = [("好" * 200, "x"), *[(f"t{i}", None) for i in range(9)], ("😀", "x")]
    _, findings = Audit().run({"train": table(*rows), "test": table(("w", "x"))}, ["x"])
    lines = findings.lines()
    assert lines[0] == "train: 11 rows, 9 dropped"
    assert lines[1].startswith("  missing_label: 9 dropped")
    assert len(lines) == 2 + 5 + 1
    assert lines[-1] == "test: 1 rows, nothing found"
    plain = json.loads(json.dumps(findings.to_dict()))
    assert plain["train"]["missing_label"]["count"] == plain["train"]["dropped"] == 9
    assert plain["train"]["missing_label"]["samples"][0] == {"id": "r1", "text": "t0"}


def test_policies_are_checked_config():
    node = {"_target_": "whet.data.audit.Audit"}
    assert build(complete(node), Audit)() == Audit()
    with pytest.raises(ConfigError, match=r"leaks=dorp: not a choice; did you mean drop\?"):
        build(node | {"leaks": "dorp"}, Audit)
