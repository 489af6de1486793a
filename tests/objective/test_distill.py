"""Distillation through whole runs: the teacher's word, its identity, hidden states; what is refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.engine.test_resume import end_of, folder_of, keys, kill_at, killed_run, train  # noqa: F401
from tests.objective.bag import TASKS, Bag, batch_of, descend, divergence_of, loss_of, naive, same

from whet.config import compose
from whet.engine.load import open_run, split_of
from whet.engine.train import Parts
from whet.objective.distill import Distill, spread
from whet.paths import Paths
from whet.peft.base import trained_names


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return tmp_path_factory.mktemp("teacher") / "run"


@pytest.fixture
def teacher(workplace, quick, trained_once):
    """A finished run, one epoch long: trained for the first test, copied for the others."""
    place = folder_of(workplace, "teacher")
    if trained_once.exists():
        shutil.copytree(trained_once, place)
    else:
        assert train(*quick, "name=teacher", "optimizer.lr=3e-3", "seed=5") == 0
        shutil.copytree(place, trained_once)
    return place


def given(kind, said, **settings):
    """The objective with a teacher that says just that."""
    objective = Distill(teacher="nowhere", **settings)
    objective._kind, objective._said = kind, said
    return objective


@pytest.mark.parametrize("kind", TASKS)
def test_the_equation(kind):
    model, batch = Bag(TASKS[kind][1], scale=4.0), batch_of(kind)
    torch.manual_seed(1)
    said = 3 * torch.randn(10, TASKS[kind][1], dtype=torch.double)
    batch.rows = np.array([7, 2, 0, 9])
    total = 0.0
    for row, logits in zip(batch.rows, model(**batch.inputs).logits, strict=True):
        label = batch.labels[list(batch.rows).index(row)]
        total = total + 0.3 * loss_of(kind, logits, label)
        total = total + 0.7 * 9.0 * divergence_of(kind, said[row] / 3.0, logits / 3.0)
    expected = naive(model, total)
    same(descend(given(kind, said, alpha=0.7, temperature=3.0), model, batch, kind), expected)
    assert descend(given(kind, said, alpha=0.2, temperature=3.0), model, batch, kind)[0] != pytest.approx(
        expected[0]
    )
    cold = descend(given(kind, said, alpha=0.7, temperature=1.0), model, batch, kind)[0]
    assert (cold == pytest.approx(expected[0])) == (kind == "regression"), (
        "T cancels out of half the squared distance"
    )


def test_the_teacher_is_asked_once_and_is_on_record(workplace, quick, teacher, monkeypatch):
    """It says what `predict` says; the second student finds that in the cache."""
    from whet.objective import distill

    asked, inner = [], distill._asked
    monkeypatch.setattr(distill, "_asked", lambda *given: asked.append(inner(*given)) or asked[-1])
    mine = [
        *quick,
        "objective=distill",
        f"objective.teacher={teacher}",
        "objective.alpha=1.0",
        "optimizer.lr=1e-2",
    ]
    for number in (1, 2):
        assert train(*mine, "engine.duration=1st", f"name=s{number}") == 0
    assert len(asked) == 1
    run = open_run(teacher, Paths(cache=str(workplace / "cache")))
    texts = split_of(run, "train", Paths()).texts
    np.testing.assert_allclose(asked[0], run.logits(texts), atol=2e-2)
    record = json.loads((folder_of(workplace, "s1") / "run.json").read_text())
    assert len(record["objective"]["teacher"]) == 64


HIDDEN = [
    "objective.hidden=1.0",
    "+model.weights.options.hidden_size=16",
    "+model.weights.options.num_attention_heads=2",
]


def test_hidden_states_with_a_map_resumed_to_the_bit(workplace, keys, teacher, kill_at):  # noqa: F811
    """A narrower student: the map between the widths trains, is saved, and comes back."""
    mine = [*keys, "objective=distill", f"objective.teacher={teacher}", *HIDDEN, "engine.duration=2ep"]
    assert train(*mine, "name=whole") == 0
    folder = killed_run(workplace, mine, "killed", kill_at, 7)
    assert train(f"resume={folder}") == 0
    assert end_of(folder) == end_of(folder_of(workplace, "whole"))


def prepared_student(workplace, teacher, options=(), **settings):
    """(objective, student, batch) as a run has them."""
    from tests.model.architectures import batch_of as texts_of

    from whet.config import build

    node = compose("train", ["task=mine", "model=tiny", *options])
    parts = build(node, Parts)()
    loaded = parts.model.load(parts.task.head(("1", "5")), parts.paths)
    objective = Distill(teacher=str(teacher), **settings)
    objective.check(parts.task)
    objective.prepare(SimpleNamespace(
        paths=parts.paths, label_names=("1", "5"), tokenizer=loaded.tokenizer, model=loaded.model, seed=1,
        amp=SimpleNamespace(device=torch.device("cpu"), name="fp32"),
    ))  # fmt: skip
    batch = texts_of(loaded.tokenizer)
    batch.labels = batch.labels.clamp(max=1)
    return objective, loaded.model, batch


def test_the_distance_of_hidden_states(workplace, quick, teacher):
    """Block by block over real tokens, through the map where widths differ; every setting counts."""
    from whet.objective.base import Forward
    from whet.task.base import Criterion

    criterion = Criterion(lambda z, y: z.sum(1) * 0, lambda y: np.ones(len(y), dtype=np.float32))
    values = {}
    for name, options, settings in (
        ("even", [], {}), ("upside down", [], {"layers": [2, 1]}), ("twice", [], {"hidden": 2.0}),
        ("narrow", HIDDEN[1:], {}),
    ):  # fmt: skip
        settings = {"hidden": 1.0, "alpha": 0.0, **settings}
        objective, student, batch = prepared_student(workplace, teacher, options, **settings)
        student.eval()
        own = student(**batch.inputs, output_hidden_states=True).hidden_states
        theirs = objective._model(**batch.inputs, output_hidden_states=True).hidden_states
        expected = 0.0
        for row, real in enumerate(batch.inputs["attention_mask"].bool()):
            for block, layer in enumerate(objective.layers, 1):
                state = own[block][row][real]
                state = state @ objective._map if name == "narrow" else state
                expected += settings["hidden"] * (state - theirs[layer][row][real]).square().mean().item() / 2
        values[name] = objective(Forward(student, criterion), batch)
        assert values[name].item() == pytest.approx(expected, rel=1e-4)
        values[name].backward()
        assert not trained_names(objective._model)
        if name == "narrow":
            assert objective.parameters()["map"].shape == (16, 32) and objective._map.grad.abs().sum() > 0
    assert values["twice"].item() == pytest.approx(2 * values["even"].item(), rel=1e-4)
    assert values["upside down"].item() != pytest.approx(values["even"].item(), rel=2e-5)


def test_blocks_are_spread():
    assert spread(6, 12) == [2, 4, 6, 8, 10, 12]
    assert spread(3, 3) == [1, 2, 3] and spread(4, 2)[-1] == 2 and min(spread(4, 1)) == 1


def test_another_teacher_in_its_place_is_noticed(workplace, keys, teacher, quick, kill_at, capsys):  # noqa: F811
    folder = killed_run(
        workplace, [*keys, "objective=distill", f"objective.teacher={teacher}"], "killed", kill_at, 4
    )
    assert train(*quick, "name=other", "seed=6") == 0
    shutil.rmtree(teacher)
    folder_of(workplace, "other").rename(teacher)
    assert train(f"resume={folder}") == 2
    assert "the objective's teacher isn't that of the run any more" in capsys.readouterr().err


def test_what_is_refused(workplace, quick, teacher, capsys):
    """Each in one line with its key; what the config alone shows, before a run folder is made."""
    text = (workplace / "conf" / "task" / "mine.yaml").read_text()
    number = text.replace("single_label.SingleLabel", "regression.Regression")
    (workplace / "conf" / "task" / "number.yaml").write_text(number)
    mine = [*quick, "objective=distill"]
    own = f"objective.teacher={teacher}"
    early = [
        ([], "objective.teacher: must be given"),
        (
            ["objective.teacher=nowhere"],
            "objective.teacher=nowhere: neither a finished run nor a model directory",
        ),
        (
            [own, "objective.layers=[1,2]"],
            "objective.layers=[1, 2]: means nothing while objective.hidden is 0",
        ),
        (
            [own, "task=number"],
            "it was trained for a task of kind single_label",
        ),
    ]
    late = [
        ([own, "task.labels=[5,1]"], "its labels are ['1', '5'], the task's ['5', '1']"),
        (
            [own, "objective.hidden=1", "objective.layers=[1]"],
            "a block from 1 to 2 for each of the student's 2",
        ),
    ]
    for arguments, told in early:
        assert train(*mine, *arguments) == 2, arguments
        assert told in capsys.readouterr().err
    assert [path.name for path in (workplace / "outputs" / "runs").iterdir()] == ["teacher"]
    for arguments, told in late:
        assert train(*mine, *arguments) == 2, arguments
        assert told in capsys.readouterr().err
